"""Example requests to a model, and its answers.

Numbers are in the range of training, where the registry or the training profile has it. Texts are made up: a bundle
contains only hashes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from features.registry import FeatureRegistry
from features.spec import AnyFeature, CategoricalList, Numeric
from serving.bundle.profile import DISTRIBUTIONS
from serving.scorer import Scorer
from serving.server.bodies import OUTPUT
from serving.server.protocol import metadata_of

NUM_ROWS = 2
Row = dict[str, Any]


class Example(NamedTuple):
    """A request body and its answer as JSON values; a csv is a text."""

    name: str
    media_type: str
    body: Any
    answer: Any


def example_rows(registry: FeatureRegistry, profile: Mapping[str, Any]) -> list[Row]:
    """Two rows with a value of every feature.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "price": "numeric"})
    >>> example_rows(registry, {})
    [{'user': 'user 1', 'price': 1.0}, {'user': 'user 2', 'price': 2.0}]
    """
    columns = {feature.name: _values(feature, profile) for feature in registry.features}
    return [{name: values[row] for name, values in columns.items()} for row in range(NUM_ROWS)]


def examples_of(name: str, scorer: Scorer) -> dict[str, list[Example]]:
    """Bodies by request format that can be sent unchanged to the model served under this name."""
    registry, version, json_type = scorer.registry, scorer.bundle.model_id, "application/json"
    rows = example_rows(registry, scorer.bundle.profile)
    names = [*rows[0]]
    half = max(1, len(names) // 2)
    context = {name: rows[0][name] for name in names[:half]}
    candidates = [{name: row[name] for name in names[half:]} for row in rows]
    of_rows, of_candidates = (scorer.score(*arguments).tolist() for arguments in ((rows,), (context, candidates)))
    inputs = [_tensor(one, rows) for one in metadata_of(registry)["inputs"]]
    output = {"name": OUTPUT, "datatype": "FP64", "shape": [NUM_ROWS], "data": of_rows}
    infer = {"model_name": name, "model_version": version, "id": "1", "outputs": [output]}

    def scored(scores: list[float]) -> Row:
        return {"model": name, "version": version, "scores": scores}

    split = {"columns": names, "data": [[*row.values()] for row in rows]}
    examples = {
        "Score": [
            Example("rows", json_type, {"rows": rows}, scored(of_rows)),
            Example("candidates", json_type, {"context": context, "candidates": candidates}, scored(of_candidates)),
        ],
        "Invocations": [
            Example("dataframe_split", json_type, {"dataframe_split": split}, _predictions(of_rows)),
            Example("dataframe_records", json_type, {"dataframe_records": rows}, _predictions(of_rows)),
        ],
        "Infer": [Example("tensors", json_type, {"id": "1", "inputs": inputs}, infer)],
    }
    flat = [{name: value for name, value in row.items() if not isinstance(value, list)} for row in rows]
    if flat[0]:  # a csv has no lists
        scores = scorer.score(flat, allow_missing=True).tolist()
        text = pl.DataFrame(flat).write_csv(separator=registry.csv.separator if registry.csv else ",")
        examples["Invocations"].append(Example("csv", "text/csv", text, _predictions(scores)))
    return examples


def _values(feature: AnyFeature, profile: Mapping[str, Any]) -> Sequence[Any]:
    if isinstance(feature, Numeric):
        return _numbers(feature, profile)
    texts: Sequence[Any] = [f"{feature.name} {k + 1}" for k in range(NUM_ROWS)]
    values = {"integer": [17, 42], "boolean": [True, False]}.get(feature.value_type or "", texts)
    if not isinstance(feature, CategoricalList):
        return values
    if feature.separator is None:
        return [values, values[::-1]]
    texts = [json.dumps(value) if isinstance(value, bool) else str(value) for value in values]
    return [feature.separator.join(texts), texts[1]]


def _numbers(feature: Numeric, profile: Mapping[str, Any]) -> list[float]:
    """Two numbers in the range of training, or 1 and 2 where the bundle does not have that."""
    fitted = feature.fitted
    if fitted is not None:
        found = _quartiles(fitted.boundaries) if fitted.boundaries else [fitted.mean, fitted.mean + fitted.std]
    else:
        try:
            found = _quartiles(profile[DISTRIBUTIONS]["features"][feature.name]["floats"]["edges"])
            if feature.transform == "log1p":
                found = [math.copysign(math.expm1(min(abs(number), 80.0)), number) for number in found]
        except (KeyError, IndexError, TypeError, ValueError):
            found = [1.0, 2.0]
    return [float(f"{number:.3g}") for number in found]


def _quartiles(edges: Sequence[float]) -> list[float]:
    return [float(edges[len(edges) // 4]), float(edges[3 * len(edges) // 4])]


def _tensor(metadata: Mapping[str, Any], rows: Sequence[Row]) -> Row:
    flat, shape = [row[metadata["name"]] for row in rows], [len(rows)]
    if isinstance(flat[0], list):
        flat, shape = [one for values in flat for one in values], [len(rows), len(flat[0])]
    if metadata["datatype"] == "BYTES":
        flat = [json.dumps(one) if isinstance(one, bool) else str(one) for one in flat]
    return {**metadata, "shape": shape, "data": flat}


def _predictions(scores: Sequence[float]) -> Row:
    return {"predictions": [{OUTPUT: score} for score in scores]}
