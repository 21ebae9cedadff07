"""The server's description, written from the model that is served: OpenAPI 3.1; `page.py` shows it to people."""

from collections.abc import Mapping
from typing import Any

from features.registry import FeatureRegistry
from features.spec import AnyFeature, CategoricalList, Numeric
from serving.bundle.manifest import installed_version
from serving.scorer import Scorer
from serving.server.bodies import OUTPUT
from serving.server.examples import Example, Row, example_rows, examples_of
from serving.server.limits import Limits
from serving.server.protocol import DATATYPES

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_SCORE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
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


def document_of(name: str, scorer: Scorer, limits: Limits, *, has_token: bool) -> Schema:
    """The OpenAPI document of a server that serves this model under this name."""
    registry, version = scorer.registry, scorer.bundle.model_id
    row = _row_schema(registry, example_rows(registry, scorer.bundle.profile))
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
            "that is absent or null is missing. Texts in examples are made up: a model does not keep any. "
            f"At most {limits.max_rows} rows and {limits.max_body_bytes} bytes a request.",
        },
        "paths": _paths(name, version, examples_of(name, scorer)),
        "components": {"schemas": schemas},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _paths(name: str, version: str, examples: Mapping[str, list[Example]]) -> Schema:
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


def _scoring(summary: str, form: str, examples: Mapping[str, list[Example]]) -> Schema:
    operation = _reading(summary, form.lower(), _ref(f"{form}Response"), ("400", "404", "408", "413", "415", "503"))
    content: Schema = {"application/json": {"schema": _ref(f"{form}Request"), "examples": {}}}
    answers = operation["responses"]["200"]["content"]
    answers["application/json"]["examples"] = {one.name: {"value": one.answer} for one in examples[form]}
    for one in examples[form]:
        content.setdefault(one.media_type, {"schema": _TEXT, "examples": {}})["examples"][one.name] = {
            "value": one.body
        }
    if form == "Infer":
        operation["description"] = (
            "The protocol's binary tensor data extension is spoken both ways. A tensor has data, or a "
            "parameter binary_data_size and as many bytes behind the JSON."
        )
        answers["application/octet-stream"] = {"schema": {}}
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


def _row_schema(registry: FeatureRegistry, rows: list[Row]) -> Schema:
    properties: Schema = {
        feature.name: _value_schema(feature)
        | {"description": _description(feature), "examples": [row[feature.name] for row in rows]}
        for feature in registry.features
    }
    return {"type": "object", "properties": properties, "additionalProperties": True}


def _description(feature: AnyFeature) -> str:
    if isinstance(feature, Numeric):
        return "a number, or a text that holds one"
    of_type = {"integer": ("an integer", "integers"), "boolean": ("true or false", "true or false")}
    one, many = of_type.get(feature.value_type or "", ("a category: text, integer or boolean", "categories"))
    if not isinstance(feature, CategoricalList):
        return one
    return f"a list of {many}" + (f", or a text with {feature.separator!r} between them" if feature.separator else "")


def _value_schema(feature: AnyFeature) -> Schema:
    """What one value may be; -3.4e38 to 3.4e38 is what float32 holds."""
    if isinstance(feature, Numeric):
        number: Schema = {"type": ["number", "null"], "minimum": -3.4e38, "maximum": 3.4e38}
        return {"anyOf": [number, {"type": "string", "pattern": r"^-?[0-9]{1,18}(\.[0-9]{1,9})?$"}]}
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
        }
    )
    tensor["properties"] |= {"data": {"type": "array"}, "parameters": _any_object()}
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


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _any_object() -> Schema:
    return {"type": "object"}


def _object(properties: Mapping[str, Schema], *, closed: bool = False) -> Schema:
    schema: Schema = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return schema | {"additionalProperties": False} if closed else schema
