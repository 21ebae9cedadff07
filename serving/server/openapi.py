"""The server's description in OpenAPI 3.1, written from the served model; `page.py` renders it for people."""

from collections.abc import Mapping
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
_ERRORS = {
    "400": "A body that cannot be used as it is",
    "401": "No token, or a wrong one",
    "403": "Only from the server's own machine, or with a token",
    "404": "No such model or version",
    "408": "The body did not arrive in time",
    "409": "The new bundle was refused; the old one is served",
    "413": "Too many bytes or rows",
    "415": "A body of another type, or a compressed one",
    "503": "Not ready, too many requests, or no answer in time; see Retry-After",
}


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
        "paths": _paths(name, version, examples_of(name, scorer)),
        "components": {"schemas": _schemas(scorer, limits)},
    }
    if has_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _paths(name: str, version: str, examples: Mapping[str, list[Example]]) -> Schema:
    pairs = (("name", name), ("version", version))
    known, that = ({"name": key, "in": "path", "required": True, "schema": {"enum": [value]}} for key, value in pairs)
    gets = {
        "/v2": _operation("server_metadata", "Name and version of the server"),
        "/v2/health/live": _operation("live", "Whether the process answers"),
        "/v2/health/ready": _operation("ready", "Whether the server takes new requests", "503"),
        "/ping": _operation("ping", "Readiness, as MLflow names it", "503"),
        "/metrics": _operation("metrics", "Metrics for Prometheus", media_type="text/plain", schema=_TEXT),
    }
    load = _operation("load", "Look for a new version now", "403", "404", "503", "409")
    posts = {
        "/score": _scoring("Score", "Score rows, or the candidates of one context", examples),
        "/invocations": _scoring("Invocations", "Score rows as MLflow's server does", examples),
        "/v2/repository/models/{name}/load": load | {"parameters": [known]},
    }
    model = "/v2/models/{name}"
    for path, suffix, parameters in ((model, "", [known]), (model + "/versions/{version}", "_version", [known, that])):
        infer = _scoring("Infer", "Score tensors (Open Inference Protocol v2)", examples)
        infer |= {"operationId": f"infer{suffix}"}
        summary = "Inputs, outputs and versions of the model"
        about = _operation(f"model{suffix}", summary, "404", "503", schema=_ref("ModelMetadata"))
        ready = _operation(f"model_ready{suffix}", "Whether the model is loaded", "404", "503")
        gets |= {path: about | {"parameters": parameters}, f"{path}/ready": ready | {"parameters": parameters}}
        posts[f"{path}/infer"] = infer | {"parameters": parameters}
    for path in OPEN_PATHS & gets.keys():  # no token is needed
        gets[path]["security"] = []
        del gets[path]["responses"]["401"]
    return {path: {"get": one} for path, one in gets.items()} | {path: {"post": one} for path, one in posts.items()}


def _scoring(body: str, summary: str, examples: Mapping[str, list[Example]]) -> Schema:
    """An operation that scores; `body` names its schemas and examples."""
    errors = ("400", "404", "408", "413", "415", "503")
    operation = _operation(body.lower(), summary, *errors, schema=_ref(f"{body}Response"))
    content: Schema = {"application/json": {"schema": _ref(f"{body}Request"), "examples": {}}}
    for one in examples[body]:
        by_name = content.setdefault(one.media_type, {"schema": _TEXT, "examples": {}})["examples"]
        by_name[one.name] = {"value": one.body}
    answers = operation["responses"]["200"]["content"]
    answers["application/json"]["examples"] = {one.name: {"value": one.answer} for one in examples[body]}
    if body == "Infer":
        answers["application/octet-stream"] = {"schema": {}}
        operation["description"] = (
            "The binary tensor data extension works in both directions: a tensor has `data`, or a parameter "
            "`binary_data_size` and as many bytes after the JSON."
        )
    return operation | {"requestBody": {"required": True, "content": content}}


def _operation(
    name: str, summary: str, *errors: str, media_type: str = "application/json", schema: Schema = _OBJECT
) -> Schema:
    responses: Schema = {"200": {"description": "Done", "content": {media_type: {"schema": schema}}}}
    content = {"application/json": {"schema": _ref("Error")}}
    responses |= {status: {"description": _ERRORS[status], "content": content} for status in (*errors, "401")}
    return {"summary": summary, "operationId": name, "responses": responses}


_REQUESTS = {
    "ScoreRequest": TypeAdapter(reduce(or_, SCORE_REQUESTS)),
    "InvocationsRequest": TypeAdapter(reduce(or_, INVOCATIONS_REQUESTS)),
    "InferRequest": TypeAdapter(InferRequest),
}


def _responses() -> Schema:
    shape, data = _list({"type": "integer"}), _list(_SCORE)
    output = _object(name={"const": OUTPUT}, datatype={"const": "FP64"}, shape=shape, data=data)
    tensors = _list(_object(name=_TEXT, datatype={"enum": list(DATATYPES)}, shape=shape))
    metadata = {"name": _TEXT, "platform": _TEXT, "parameters": _OBJECT, "versions": _list(_TEXT)}
    return {
        "Error": _object(error=_TEXT),
        "ScoreResponse": _object(model=_TEXT, version=_TEXT, scores=_list(_SCORE)),
        "InvocationsResponse": _object(predictions=_list(_object(probability=_SCORE))),
        "InferResponse": _object(model_name=_TEXT, model_version=_TEXT, id=_TEXT, outputs=_list(output)),
        "ModelMetadata": _object(**metadata, inputs=tensors, outputs=tensors),
    }


def _schemas(scorer: Scorer, limits: Limits) -> Schema:
    """Schemas of all bodies: requests by the models that read them, with the features and limits of this server."""
    adapters = [(name, "validation", adapter) for name, adapter in _REQUESTS.items()]
    named, defined = TypeAdapter.json_schemas(adapters, ref_template=_ref("{model}")["$ref"])  # type: ignore[arg-type]
    schemas = {name: schema for (name, _), schema in named.items()} | defined["$defs"] | _responses()
    rows, features = example_rows(scorer.registry, scorer.bundle.profile), scorer.registry.features
    schemas["Rows"]["maxItems"] = limits.max_rows
    schemas["FeatureName"] = {"enum": [feature.name for feature in features]}
    columns = {feature.name: _list(_value_schema(feature)) for feature in features}
    schemas["Columns"] = {"type": "object", "properties": columns, "minProperties": 1}
    values: Schema = {
        feature.name: _value_schema(feature)
        | {"description": _description(feature), "examples": [row[feature.name] for row in rows]}
        for feature in features
    }
    schemas["Row"] = {"type": "object", "properties": values, "additionalProperties": True}
    return schemas


def _description(feature: FeatureSpec) -> str:
    if isinstance(feature, Numeric):
        return "a number, or a text that holds one"
    if not isinstance(feature, Categorical | CategoricalList):
        return "a value as in the examples"
    of_type = {"integer": ("an integer", "integers"), "boolean": ("true or false", "true or false")}
    one, many = of_type.get(feature.value_type or "", ("a category: text, integer or boolean", "categories"))
    if not isinstance(feature, CategoricalList):
        return one
    return f"a list of {many}" + (f", or a text with {feature.separator!r} between them" if feature.separator else "")


def _value_schema(feature: FeatureSpec) -> Schema:
    """The values that a feature takes; -3.4e38 to 3.4e38 is the range of float32."""
    if isinstance(feature, Numeric):
        number: Schema = {"type": ["number", "null"], "minimum": -3.4e38, "maximum": 3.4e38}
        return {"anyOf": [number, {"type": "string", "pattern": r"^-?[0-9]{1,18}(\.[0-9]{1,9})?$"}]}
    if not isinstance(feature, Categorical | CategoricalList):
        return {}
    scalar: Schema = {"type": ["string", "integer", "boolean", "null"]}
    if not isinstance(feature, CategoricalList):
        return scalar
    forms: list[Schema] = [_list(scalar), {"type": "null"}]
    return {"anyOf": forms if feature.separator is None else [*forms, _TEXT]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
