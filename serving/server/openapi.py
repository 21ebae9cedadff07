"""The server's description in OpenAPI 3.1, written from the served model; `page.py` renders it for people."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from pydantic import TypeAdapter

from features.spec import Categorical, CategoricalList, FeatureSpec, Numeric
from serving.bundle.manifest import installed_version
from serving.scorer import Scorer
from serving.server.access import OPEN_PATHS
from serving.server.bodies import INVOCATIONS_REQUESTS, OUTPUT, SCORE_REQUESTS
from serving.server.examples import Example, example_rows, examples_of
from serving.server.limits import Limits
from serving.server.protocol import DATATYPES, InferRequest

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}
_SCORE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_ERROR = "An error: 4xx for a request to correct, 503 for one to repeat (see Retry-After)"


def document_of(name: str, scorer: Scorer, limits: Limits, *, has_token: bool) -> Schema:
    """The OpenAPI document of a server that serves this model under this name."""
    version = scorer.bundle.model_id
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": f"muxrec: {name}",
            "version": installed_version(),
            "description": f"Probabilities of version {version}. A row is an object from feature to value; a feature "
            "that is absent or null is missing. Texts in examples are made up: a model does not keep any. "
            f"At most {limits.max_rows} rows and {limits.max_body_bytes} bytes per request.",
        },
        "paths": _paths(name, scorer),
        "components": {"schemas": _schemas(scorer, limits)},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _paths(name: str, scorer: Scorer) -> Schema:
    examples = examples_of(name, scorer)
    gets = {
        "/v2": _operation("server_metadata", "Name and version of the server"),
        "/v2/health/live": _operation("live", "Whether the process answers"),
        "/v2/health/ready": _operation("ready", "Whether the server takes new requests"),
        "/ping": _operation("ping", "Readiness, as MLflow names it"),
        "/metrics": _operation("metrics", "Metrics for Prometheus", _TEXT, "text/plain"),
    }
    posts = {
        "/score": _scoring("Score", "Score rows, or the candidates of one context", examples["Score"]),
        "/invocations": _scoring("Invocations", "Score rows as MLflow's server does", examples["Invocations"]),
        "/v2/repository/models/{name}/load": _operation("load", "Look for a new version now"),
    }
    for model, suffix in (("/v2/models/{name}", ""), ("/v2/models/{name}/versions/{version}", "_version")):
        about = "Inputs, outputs and versions of the model"
        gets[model] = _operation(f"model{suffix}", about, _ref("ModelMetadata"))
        gets[f"{model}/ready"] = _operation(f"model_ready{suffix}", "Whether the model is loaded")
        infer = _scoring("Infer", "Score tensors (Open Inference Protocol v2)", examples["Infer"])
        posts[f"{model}/infer"] = infer | {"operationId": f"infer{suffix}"}
    for path in OPEN_PATHS & gets.keys():
        gets[path]["security"] = []
    served = (("name", name), ("version", scorer.bundle.model_id))
    known = [{"name": key, "in": "path", "required": True, "schema": {"enum": [value]}} for key, value in served]
    for path, operation in (gets | posts).items():
        operation["parameters"] = [one for one in known if f"{{{one['name']}}}" in path]
    return {path: {"get": one} for path, one in gets.items()} | {path: {"post": one} for path, one in posts.items()}


def _scoring(body: str, summary: str, examples: Sequence[Example]) -> Schema:
    """An operation that scores; `body` names its schemas."""
    operation = _operation(body.lower(), summary, _ref(f"{body}Response"))
    content: Schema = {"application/json": {"schema": _ref(f"{body}Request"), "examples": {}}}
    for one in examples:
        by_name = content.setdefault(one.media_type, {"schema": _TEXT, "examples": {}})["examples"]
        by_name[one.name] = {"value": one.body}
    answers = operation["responses"]["200"]["content"]
    answers["application/json"]["examples"] = {one.name: {"value": one.answer} for one in examples}
    if body == "Infer":
        answers["application/octet-stream"] = {"schema": {}}
        operation["description"] = (
            "The binary tensor data extension works in both directions: a tensor has `data`, or a parameter "
            "`binary_data_size` and as many bytes after the JSON."
        )
    return operation | {"requestBody": {"required": True, "content": content}}


def _operation(name: str, summary: str, schema: Schema = _OBJECT, media_type: str = "application/json") -> Schema:
    done = {"description": "Done", "content": {media_type: {"schema": schema}}}
    error = {"description": _ERROR, "content": {"application/json": {"schema": _ref("Error")}}}
    return {"summary": summary, "operationId": name, "responses": {"200": done, "default": error}}


_REQUESTS = {
    "ScoreRequest": TypeAdapter(reduce(or_, SCORE_REQUESTS)),
    "InvocationsRequest": TypeAdapter(reduce(or_, INVOCATIONS_REQUESTS)),
    "InferRequest": TypeAdapter(InferRequest),
}


def _schemas(scorer: Scorer, limits: Limits) -> Schema:
    """Schemas of all bodies: requests by the models that read them, with the features and limits of this server."""
    adapters = [(name, "validation", adapter) for name, adapter in _REQUESTS.items()]
    named, defined = TypeAdapter.json_schemas(adapters, ref_template=_ref("{model}")["$ref"])  # type: ignore[arg-type]
    schemas = {name: schema for (name, _), schema in named.items()} | defined["$defs"] | _responses()
    rows = example_rows(scorer.registry)
    values = {feature.name: _value_schema(feature) for feature in scorer.registry.features}
    columns = {name: _list(schema) for name, schema in values.items()}
    shown = {name: schema | {"examples": [row[name] for row in rows]} for name, schema in values.items()}
    schemas["Rows"]["maxItems"] = limits.max_rows
    schemas["FeatureName"] = {"enum": list(values)}
    schemas["Columns"] = {"type": "object", "properties": columns, "minProperties": 1}
    schemas["Row"] = {"type": "object", "properties": shown, "additionalProperties": True}
    return schemas


def _responses() -> Schema:
    shape, data = _list({"type": "integer"}), _list(_SCORE)
    output = _object(name={"const": OUTPUT}, datatype={"const": "FP64"}, shape=shape, data=data)
    tensors = _list(_object(name=_TEXT, datatype={"enum": list(DATATYPES)}, shape=shape))
    metadata = {"name": _TEXT, "platform": _TEXT, "parameters": _OBJECT, "versions": _list(_TEXT)}
    return {
        "Error": _object(error=_TEXT),
        "ScoreResponse": _object(model=_TEXT, version=_TEXT, scores=data),
        "InvocationsResponse": _object(predictions=_list(_object(probability=_SCORE))),
        "InferResponse": _object(model_name=_TEXT, model_version=_TEXT, id=_TEXT, outputs=_list(output)),
        "ModelMetadata": _object(**metadata, inputs=tensors, outputs=tensors),
    }


def _value_schema(feature: FeatureSpec) -> Schema:
    """The values that a feature takes; -3.4e38 to 3.4e38 is the range of float32."""
    if isinstance(feature, Numeric):
        number: Schema = {"type": ["number", "null"], "minimum": -3.4e38, "maximum": 3.4e38}
        text = _TEXT | {"pattern": r"^-?[0-9]{1,18}(\.[0-9]{1,9})?$"}
        return {"anyOf": [number, text], "description": "a number, or a text that holds one"}
    if not isinstance(feature, Categorical | CategoricalList):
        return {"description": "a value as in the examples"}
    scalar: Schema = {"type": ["string", "integer", "boolean", "null"]}
    about = f"a category: {feature.value_type or 'text, integer or boolean'}"
    if not isinstance(feature, CategoricalList):
        return scalar | {"description": about}
    lists: list[Schema] = [_list(scalar), {"type": "null"}]
    about = about.replace("a category", "a list of categories")
    if feature.separator is not None:
        lists, about = [*lists, _TEXT], f"{about}; or a text with {feature.separator!r} between them"
    return {"anyOf": lists, "description": about}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
