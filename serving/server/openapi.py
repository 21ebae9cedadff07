"""The server's description, written from the registry that is served: OpenAPI 3.1 for machines, a page for people."""

import html
import json
from collections.abc import Mapping
from typing import Any

from features.registry import FeatureRegistry
from features.spec import AnyFeature, CategoricalList, Numeric
from serving.bundle import PROBABILITY, Bundle
from serving.manifest import installed_version
from serving.server.bodies import OUTPUT
from serving.server.limits import Limits
from serving.server.protocol import DATATYPES, metadata_of

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_SCORE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "pre{background:#f4f4f4;padding:1em;white-space:pre-wrap;overflow-wrap:anywhere}"
)
_ERRORS = {
    "400": "A body that cannot be used as it is",
    "401": "No token, or another one",
    "403": "Not from here",
    "404": "No such model or version",
    "408": "The body did not arrive in time",
    "409": "The new bundle was refused; the old one is served",
    "413": "Too many bytes or rows",
    "415": "A body of another type",
    "503": "Not ready, too many requests, or no answer in time; see Retry-After",
}


def document_of(name: str, version: str, bundle: Bundle, limits: Limits, *, has_token: bool) -> Schema:
    """The OpenAPI document of a server that serves this bundle under this name."""
    registry = bundle.registry
    row = _row_schema(registry)
    schemas = {
        "Error": _object({"error": _TEXT}),
        "Row": row,
        "ScoreRequest": {"oneOf": _score_requests(limits)},
        "ScoreResponse": _object({"model": _TEXT, "version": _TEXT, "scores": _list(_SCORE)}),
        "InvocationsRequest": {"oneOf": _invocations_requests(registry, limits)},
        "InvocationsResponse": _object({"predictions": _list(_object({OUTPUT: _SCORE}))}),
        "InferRequest": _infer_request(registry),
        "InferResponse": _infer_response(),
        "ModelMetadata": _metadata_schema(),
    }
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": f"muxrec: {name}",
            "version": installed_version(),
            "description": f"Probabilities of version {version}. A row is an object from feature to value; a feature "
            "that is absent or null is missing. "
            f"At most {limits.max_rows} rows and {limits.max_body_bytes} bytes a request.",
        },
        "paths": _paths(name, version, _examples(bundle)),
        "components": {"schemas": schemas},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def page_of(document: Schema) -> str:
    """The document as one page of HTML without scripts, styles or pictures from elsewhere."""
    info, parts = document["info"], []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}</p>"
            )
            content = operation.get("requestBody", {}).get("content", {})
            for media_type, body in content.items():
                for example in (one["value"] for one in body.get("examples", {}).values()):
                    text = example if isinstance(example, str) else json.dumps(example, ensure_ascii=False)
                    parts.append(f"<p>{html.escape(media_type)}</p><pre>{html.escape(text)}</pre>")
    features = json.dumps(document["components"]["schemas"]["Row"]["properties"], indent=1)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(info['title'])}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(info['title'])}</h1><p>{html.escape(info['description'])} "
        "For machines: <a href=openapi.json>openapi.json</a>.</p>"
        f"{''.join(parts)}<h2>Features of a row</h2><pre>{html.escape(features)}</pre></html>"
    )


def _paths(name: str, version: str, examples: Mapping[str, Schema]) -> Schema:
    pairs = (("name", name), ("version", version))
    model, versioned = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    known, that = ({"name": key, "in": "path", "required": True, "schema": {"enum": [value]}} for key, value in pairs)
    paths: Schema = {
        "/score": {"post": _scoring("Score rows, or the candidates of one context", "Score", examples)},
        "/invocations": {"post": _scoring("Score rows as MLflow's server takes them", "Invocations", examples)},
        "/v2": {"get": _reading("Name and version of the server", "server_metadata", _any_object())},
        "/v2/health/live": {"get": _reading("Whether the process answers", "live", _any_object(), open_to_all=True)},
        "/v2/health/ready": {
            "get": _reading("Whether new requests are welcome", "ready", _any_object(), ("503",), open_to_all=True)
        },
    }
    for path, parameters, suffix in ((model, [known], ""), (versioned, [known, that], "_version")):
        infer = _scoring("Score tensors (Open Inference Protocol v2)", "Infer", examples)
        paths[f"{path}/infer"] = {"post": infer | {"operationId": f"infer{suffix}", "parameters": parameters}}
        for end, schema, summary in (
            ("", _ref("ModelMetadata"), "Inputs, outputs and versions of the model"),
            ("/ready", _any_object(), "Whether the model is loaded"),
        ):
            operation = _reading(summary, f"model{end.replace('/', '_')}{suffix}", schema, ("404", "503"))
            paths[path + end] = {"get": operation | {"parameters": parameters}}
    load = _reading("Look for a new version now", "load", _any_object(), ("403", "404", "409", "503"))
    paths["/v2/repository/models/{name}/load"] = {"post": load | {"parameters": [known]}}
    paths["/ping"] = {
        "get": _reading("Readiness, as MLflow names it", "ping", _any_object(), ("503",), open_to_all=True)
    }
    paths["/metrics"] = {"get": _reading("Counts for Prometheus", "metrics", None)}
    return paths


def _scoring(summary: str, form: str, examples: Mapping[str, Schema]) -> Schema:
    content: Schema = {"application/json": {"schema": _ref(f"{form}Request"), "examples": examples[form]}}
    if form == "Invocations":
        content["text/csv"] = {"schema": _TEXT, "examples": examples["csv"]}
    operation = _reading(summary, form.lower(), _ref(f"{form}Response"), ("400", "404", "408", "413", "415", "503"))
    return operation | {"requestBody": {"required": True, "content": content}}


def _reading(
    summary: str, name: str, schema: Schema | None, errors: tuple[str, ...] = (), *, open_to_all: bool = False
) -> Schema:
    media_type = "application/json" if schema is not None else "text/plain"
    responses: Schema = {"200": {"description": "Done", "content": {media_type: {"schema": schema or _TEXT}}}}
    for status in (*errors, *(() if open_to_all else ("401",))):
        content = {"application/json": {"schema": _ref("Error")}}
        responses[status] = {"description": _ERRORS[status], "content": content}
    operation: Schema = {"summary": summary, "operationId": name, "responses": responses}
    return operation | {"security": []} if open_to_all else operation


def _row_schema(registry: FeatureRegistry) -> Schema:
    return {
        "type": "object",
        "properties": {feature.name: _value_schema(feature) for feature in registry.features},
        "additionalProperties": True,
    }


def _value_schema(feature: AnyFeature) -> Schema:
    """What one value may be; -3.4e38 to 3.4e38 is what float32 holds."""
    if isinstance(feature, Numeric):
        return {"type": ["number", "null"], "minimum": -3.4e38, "maximum": 3.4e38}
    scalar: Schema = {"type": ["string", "integer", "boolean", "null"]}
    if not isinstance(feature, CategoricalList):
        return scalar
    forms: list[Schema] = [_list(scalar), {"type": "null"}]
    return {"anyOf": forms if feature.separator is None else [*forms, _TEXT]}


def _score_requests(limits: Limits) -> list[Schema]:
    rows = _list(_ref("Row")) | {"maxItems": limits.max_rows}
    context = _object({"context": _ref("Row"), "candidates": rows}, closed=True)
    return [_object({"rows": rows}, closed=True), context]


def _invocations_requests(registry: FeatureRegistry, limits: Limits) -> list[Schema]:
    rows = _list(_ref("Row")) | {"maxItems": limits.max_rows}
    names: Schema = {"enum": [feature.name for feature in registry.features]}
    values: Schema = {"type": "array", "items": _list({})}
    split = _object({"columns": _list(names) | {"uniqueItems": True, "minItems": 1}, "data": values})
    columns = {feature.name: _list(_value_schema(feature)) for feature in registry.features}
    inputs: Schema = {"type": "object", "properties": columns, "minProperties": 1}
    forms = {
        "dataframe_split": split,
        "dataframe_records": rows,
        "instances": rows,
        "inputs": {"anyOf": [inputs, rows]},
    }
    return [_object({form: schema}) for form, schema in forms.items()]


def _infer_request(registry: FeatureRegistry) -> Schema:
    tensor = _object(
        {
            "name": {"type": "string", "examples": [feature.name for feature in registry.features]},
            "shape": _list({"type": "integer", "minimum": 0}) | {"minItems": 1, "maxItems": 2},
            "datatype": {"enum": list(DATATYPES)},
            "data": {"type": "array"},
        }
    )
    inputs = _list(tensor) | {"minItems": 1}
    request = _object({"inputs": inputs})
    request["properties"] |= {
        "id": _TEXT,
        "outputs": _list(_object({"name": {"const": OUTPUT}})),
        "parameters": _any_object(),
    }
    return request


def _infer_response() -> Schema:
    shape = _list({"type": "integer"})
    output = _object({"name": {"const": OUTPUT}, "datatype": {"const": "FP64"}, "shape": shape, "data": _list(_SCORE)})
    return _object({"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": _list(output)})


def _metadata_schema() -> Schema:
    tensor = _object({"name": _TEXT, "datatype": {"enum": list(DATATYPES)}, "shape": _list({"type": "integer"})})
    lists = {"versions": _list(_TEXT), "inputs": _list(tensor), "outputs": _list(tensor)}
    return _object({"name": _TEXT, "platform": _TEXT, "parameters": _any_object(), **lists})


def _examples(bundle: Bundle) -> dict[str, Schema]:
    """Bodies that can be sent as they are, made of golden rows, which are nobody's data."""
    registry = bundle.registry
    golden: list[dict[str, Any]] = bundle.golden.drop(PROBABILITY).to_dicts()
    # Golden rows hold odd values on purpose: the fullest and shortest ones read best.
    rows = sorted(golden, key=lambda row: (sum(value is None for value in row.values()), len(str(row))))[:2]
    names = [feature.name for feature in registry.features]
    half = max(1, len(names) // 2)
    context = {name: rows[0][name] for name in names[:half]}
    candidates = [{name: row[name] for name in names[half:]} for row in rows]
    split = {"columns": names, "data": [[row[name] for name in names] for row in rows]}
    tensors: list[Schema] = []
    for one in metadata_of(registry)["inputs"]:
        if len(one["shape"]) == 1:
            values = [row[one["name"]] for row in rows]
            texts = [None if value is None else str(value) for value in values]
            data = texts if one["datatype"] == "BYTES" else values
            tensors.append(one | {"shape": [len(rows)], "data": data})
    return {
        "Score": {
            "rows": {"value": {"rows": rows}},
            "candidates": {"value": {"context": context, "candidates": candidates}},
        },
        "Invocations": {
            "split": {"value": {"dataframe_split": split}},
            "records": {"value": {"dataframe_records": rows}},
        },
        "Infer": {"tensors": {"value": {"id": "1", "inputs": tensors}}},
        "csv": {"rows": {"value": ",".join(names[:1]) + "\n7\n"}},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _any_object() -> Schema:
    return {"type": "object"}


def _object(properties: Mapping[str, Schema], *, closed: bool = False) -> Schema:
    schema: Schema = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return schema | {"additionalProperties": False} if closed else schema
