"""The server's description, written from the model that is served: OpenAPI 3.1; `page.py` shows it to people."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from features.spec import AnyFeature, CategoricalList, Numeric
from serving.bundle.manifest import installed_version
from serving.scorer import Scorer
from serving.server.bodies import (
    CandidatesRequest,
    InputsRequest,
    InstancesRequest,
    InvocationsResponse,
    RecordsRequest,
    RowsRequest,
    ScoreResponse,
    SplitRequest,
)
from serving.server.examples import Example, example_rows, examples_of
from serving.server.limits import Limits
from serving.server.protocol import InferRequest, InferResponse, ModelMetadata

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}
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
    model, versioned = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    known, that = ({"name": key, "in": "path", "required": True, "schema": {"enum": [value]}} for key, value in pairs)
    paths: Schema = {
        "/score": {"post": _scoring("Score rows, or the candidates of one context", "Score", examples)},
        "/invocations": {"post": _scoring("Score rows as MLflow's server takes them", "Invocations", examples)},
        "/v2": {"get": _reading("Name and version of the server", "server_metadata", _OBJECT)},
        "/v2/health/live": {"get": _reading("Whether the process answers", "live", _OBJECT, open_to_all=True)},
        "/v2/health/ready": {
            "get": _reading("Whether new requests are welcome", "ready", _OBJECT, ("503",), open_to_all=True)
        },
    }
    for path, parameters, suffix in ((model, [known], ""), (versioned, [known, that], "_version")):
        infer = _scoring("Score tensors (Open Inference Protocol v2)", "Infer", examples)
        paths[f"{path}/infer"] = {"post": infer | {"operationId": f"infer{suffix}", "parameters": parameters}}
        for end, schema, summary in (
            ("", _ref("ModelMetadata"), "Inputs, outputs and versions of the model"),
            ("/ready", _OBJECT, "Whether the model is loaded"),
        ):
            operation = _reading(summary, f"model{end.replace('/', '_')}{suffix}", schema, ("404", "503"))
            paths[path + end] = {"get": operation | {"parameters": parameters}}
    load = _reading("Look for a new version now", "load", _OBJECT, ("403", "404", "409", "503"))
    paths["/v2/repository/models/{name}/load"] = {"post": load | {"parameters": [known]}}
    paths["/ping"] = {"get": _reading("Readiness, as MLflow names it", "ping", _OBJECT, ("503",), open_to_all=True)}
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


class Error(TypedDict):
    """Answer to a request that cannot be answered otherwise."""

    error: str


_BODIES: dict[str, Any] = {
    "Error": Error,
    "ScoreRequest": RowsRequest | CandidatesRequest,
    "ScoreResponse": ScoreResponse,
    "InvocationsRequest": SplitRequest | RecordsRequest | InstancesRequest | InputsRequest,
    "InvocationsResponse": InvocationsResponse,
    "InferRequest": InferRequest,
    "InferResponse": InferResponse,
    "ModelMetadata": ModelMetadata,
}


def _schemas(scorer: Scorer, limits: Limits) -> Schema:
    """Schemas of all bodies by name: the models that read them, with the features and limits of this server."""
    adapters = [(name, "validation", TypeAdapter(body)) for name, body in _BODIES.items()]
    named, defined = TypeAdapter.json_schemas(adapters, ref_template=_ref("{model}")["$ref"])  # type: ignore[arg-type]
    schemas: Schema = {name: schema for (name, _), schema in named.items() if schema != _ref(str(name))}
    schemas |= defined["$defs"]
    rows, features = example_rows(scorer.registry, scorer.bundle.profile), scorer.registry.features
    schemas["Rows"]["maxItems"] = limits.max_rows
    schemas["FeatureName"] = {"enum": [feature.name for feature in features]}
    columns = {feature.name: {"type": "array", "items": _value_schema(feature)} for feature in features}
    schemas["Columns"] = {"type": "object", "properties": columns, "minProperties": 1}
    values: Schema = {
        feature.name: _value_schema(feature)
        | {"description": _description(feature), "examples": [row[feature.name] for row in rows]}
        for feature in features
    }
    schemas["Row"] = {"type": "object", "properties": values, "additionalProperties": True}
    return schemas


def _description(feature: AnyFeature) -> str:
    if isinstance(feature, Numeric):
        return "a number, or a text that holds one"
    of_type = {"integer": ("an integer", "integers"), "boolean": ("true or false", "true or false")}
    one, many = of_type.get(feature.value_type or "", ("a category: text, integer or boolean", "categories"))
    if not isinstance(feature, CategoricalList):
        return one
    return f"a list of {many}" + (f", or a text with {feature.separator!r} between them" if feature.separator else "")


def _value_schema(feature: AnyFeature) -> Schema:
    """The values that a feature takes; -3.4e38 to 3.4e38 is the range of float32."""
    if isinstance(feature, Numeric):
        number: Schema = {"type": ["number", "null"], "minimum": -3.4e38, "maximum": 3.4e38}
        return {"anyOf": [number, {"type": "string", "pattern": r"^-?[0-9]{1,18}(\.[0-9]{1,9})?$"}]}
    scalar: Schema = {"type": ["string", "integer", "boolean", "null"]}
    if not isinstance(feature, CategoricalList):
        return scalar
    forms: list[Schema] = [{"type": "array", "items": scalar}, {"type": "null"}]
    return {"anyOf": forms if feature.separator is None else [*forms, _TEXT]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
