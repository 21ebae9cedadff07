"""Example requests to a model, with made-up values, and its answers: a bundle has no texts, only their hashes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from features.registry import FeatureRegistry
from features.spec import Categorical, CategoricalList, FeatureSpec, Numeric
from serving.scorer import Scorer
from serving.server.bodies import INVOCATIONS, INVOCATIONS_CSV, SCORE, RequestFormat
from serving.server.limits import Limits
from serving.server.metrics import ModelVersion
from serving.server.protocol import metadata_of, tensors_of

Row = dict[str, Any]


class Example(NamedTuple):
    """A request body and its answer as JSON values; a csv is a text."""

    name: str
    media_type: str
    body: Any
    answer: Any


def example_rows(registry: FeatureRegistry) -> list[Row]:
    """Two rows with a value of every feature.

    >>> example_rows(FeatureRegistry.of(features={"user": "categorical", "price": "numeric"}))
    [{'user': 'user 1', 'price': 1.0}, {'user': 'user 2', 'price': 2.0}]
    """
    return [{feature.name: _value(feature, number) for feature in registry.features} for number in (1, 2)]


def examples_of(name: str, scorer: Scorer) -> dict[str, list[Example]]:
    """Bodies by request format that can be sent unchanged to the model served under this name."""
    registry, version = scorer.registry, ModelVersion(name, scorer.bundle.model_id)
    rows = example_rows(registry)
    names = [*rows[0]]
    shared = names[: max(1, len(names) // 2)]
    context = {key: rows[0][key] for key in shared}
    candidates = [{key: row[key] for key in names if key not in shared} for row in rows]
    split = {"columns": names, "data": [[*row.values()] for row in rows]}
    inputs = [_tensor(one, rows) for one in metadata_of(registry)["inputs"]]
    csv = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]  # it has no lists
    separator = registry.csv.separator if registry.csv else ","

    def example(title: str, format: RequestFormat, body: Any) -> Example:
        text, media_type = (body, "text/csv") if isinstance(body, str) else (json.dumps(body), "application/json")
        request = format.read(text.encode(), registry, Limits())
        answer = format.reply(version, request, scorer.score(*request.arguments, allow_missing=True))
        return Example(title, media_type, body, json.loads(bytes(answer.body)))

    return {
        "Score": [
            example("rows", SCORE, {"rows": rows}),
            example("candidates", SCORE, {"context": context, "candidates": candidates}),
        ],
        "Invocations": [
            example("dataframe_split", INVOCATIONS, {"dataframe_split": split}),
            example("dataframe_records", INVOCATIONS, {"dataframe_records": rows}),
            *([example("csv", INVOCATIONS_CSV, pl.DataFrame(csv).write_csv(separator=separator))] if csv[0] else []),
        ],
        "Infer": [example("tensors", tensors_of(None), {"id": "1", "inputs": inputs})],
    }


def _value(feature: FeatureSpec, number: int) -> Any:
    """The value of a feature in row 1 or 2; of a number near the mean of training, where the registry has it."""
    if isinstance(feature, Numeric):
        fitted = feature.fitted
        return float(f"{fitted.mean + (number - 1) * fitted.std:.3g}") if fitted else float(number)
    if not isinstance(feature, Categorical | CategoricalList):
        return feature.samples()[-number]
    texts = [f"{feature.name} 1", f"{feature.name} 2"]
    values: Sequence[Any] = {"integer": [17, 42], "boolean": [True, False]}.get(feature.value_type or "", texts)
    if not isinstance(feature, CategoricalList):
        return values[number - 1]
    return values[::-1] if feature.separator is None else feature.separator.join(map(str, values[:number]))


def _tensor(metadata: Mapping[str, Any], rows: Sequence[Row]) -> Row:
    values = np.array([row[metadata["name"]] for row in rows])
    values = values.astype(str) if metadata["datatype"] == "BYTES" else values
    return {**metadata, "shape": list(values.shape), "data": values.ravel().tolist()}
