"""The answers of each path: scores against plain loops and MLflow's own parser, errors in one line."""

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.utils.proto_json_utils import dataframe_from_parsed_json, parse_tf_serving_input

from features.registry import FeatureRegistry
from serving.bundle import Bundle
from serving.scorer import Scorer
from serving.server.examples import example_rows
from serving.server.limits import Limits
from tests.serving.conftest import REGISTRY, ROUNDING, make_bundle, raw_frame, reference, table
from tests.serving.server.app import FORMS, JSON, NAME, Client, Served, rows_of, tensor, tensors_of

GOLDEN = Path(__file__).parents[2] / "golden" / "bundle"
RAW = raw_frame(40, seed=11)
INFER = f"/v2/models/{NAME}/infer"


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Served:
    return Served(bundle.path).start()


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return served.client()


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return Scorer(bundle, num_threads=1)


def post(client: Client, path: str, body: Any, **headers: str) -> Any:
    """The document of an answer of status 200."""
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    answer = client.post(path, content=content, headers=JSON | headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_rows_score_as_plain_loops_do(client: Client, bundle: Bundle) -> None:
    answer = post(client, "/score", {"rows": rows_of(RAW)})
    assert np.abs(np.array(answer["scores"]) - reference(RAW, table())).max() < 1e-6
    assert (answer["model"], answer["version"]) == (NAME, bundle.model_id)


def test_a_context_is_sent_once(client: Client) -> None:
    context = {"user": 7, "genres": ["a", "b"], "age": 30}
    candidates = [{"item": "i1", "price": 1.5}, {"item": "ß", "words": ["w1"]}, {}]
    once = post(client, "/score", {"context": context, "candidates": candidates})
    expanded = post(client, "/score", {"rows": [{**context, **candidate} for candidate in candidates]})
    assert once == expanded
    assert len(set(once["scores"])) == 3
    assert post(client, "/score", {"context": context, "candidates": []})["scores"] == []
    assert post(client, "/score", {"rows": []})["scores"] == []


def test_tensors_score_like_rows(client: Client) -> None:
    expected = post(client, "/score", {"rows": rows_of(RAW)})
    answer = post(client, INFER, tensors_of(RAW) | {"id": "of mine"})
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": NAME, "model_version": expected["version"], "id": "of mine"}
    assert output == {"name": "probability", "datatype": "FP64", "shape": [40], "data": expected["scores"]}
    versioned = post(client, f"/v2/models/{NAME}/versions/{expected['version']}/infer", tensors_of(RAW))
    assert versioned["outputs"] == [output]


def test_shapes_of_tensors(client: Client) -> None:
    def score(*inputs: dict[str, Any]) -> list[float]:
        return post(client, INFER, {"inputs": inputs, "outputs": [{"name": "probability"}]})["outputs"][0]["data"]

    def rows(*rows: dict[str, Any]) -> list[float]:
        return post(client, "/score", {"rows": rows})["scores"]

    expected = rows({"user": "7", "words": ["w1", "w2"]}, {"user": "8", "words": ["w3", None]})
    user = tensor("user", "INT16", [7, 8])
    flat = tensor("words", "BYTES", ["w1", "w2", "w3", None], [2, 2])
    assert score(user, flat) == expected
    assert score(user, flat | {"data": [["w1", "w2"], ["w3", None]]}) == expected
    assert score(tensor("user", "UINT8", [7, 8], [2, 1]), flat) == expected
    assert score(tensor("user", "FP32", [7.0, 8]), flat) == expected
    # A list feature with a separator takes its text as files do, and lists too.
    text = rows({"genres": "a|b"}, {"genres": "c"})
    for genres in (
        tensor("genres", "BYTES", ["a|b", "c"]),
        tensor("genres", "BYTES", ["a|b", "c"], [2, 1]),
        tensor("genres", "BYTES", [["a|b"], ["c"]], [2, 1]),
    ):
        assert score(genres) == text
    assert score(tensor("words", "BYTES", [], [3, 0])) == rows(*[{"words": []}] * 3)
    assert score(tensor("user", "BOOL", [True])) == rows({"user": True})


def test_forms_of_mlflow_score_as_mlflow_reads_them(client: Client, scorer: Scorer) -> None:
    frame = RAW.drop("row").to_dicts()
    columns = {name: [row[name] for row in frame] for name in frame[0]}
    split = {"columns": list(columns), "index": list(range(40)), "data": [list(row.values()) for row in frame]}
    for name, value in {"split": split, "records": frame}.items():
        parsed = dataframe_from_parsed_json(json.loads(json.dumps(value)), pandas_orient=name)
        expected = [{"probability": one} for one in scorer.score(parsed, allow_missing=True).tolist()]
        assert post(client, "/invocations", {f"dataframe_{name}": value, "params": None}) == {"predictions": expected}
        assert post(client, "/invocations", {"instances": frame}) == {"predictions": expected}
    del columns["words"]  # lists of unequal lengths it takes in rows alone
    arrays = parse_tf_serving_input({"inputs": json.loads(json.dumps(columns))})
    parsed = pd.DataFrame({column: list(values) for column, values in arrays.items()})
    expected = [{"probability": one} for one in scorer.score(parsed, allow_missing=True).tolist()]
    assert post(client, "/invocations", {"inputs": columns}) == {"predictions": expected}


def test_csv_means_what_it_means_in_files(client: Client, scorer: Scorer, tmp_path: Any) -> None:
    raw = RAW.drop("words", "row")
    text = raw.write_csv(quote_style="non_numeric")
    answer = client.post("/invocations", content=text, headers={"Content-Type": "text/csv; charset=utf-8"})
    expected = scorer.score(raw, allow_missing=True)
    assert [one["probability"] for one in answer.json()["predictions"]] == expected.tolist()


def test_absent_null_and_nan_are_missing(client: Client) -> None:
    scores = post(client, "/score", '{"rows": [{}, {"user": null}, {"user": NaN}, {"price": NaN, "words": null}]}')
    assert np.ptp(scores["scores"]) <= ROUNDING


def test_metadata(client: Client, bundle: Bundle) -> None:
    for path in (f"/v2/models/{NAME}", f"/v2/models/{NAME}/versions/{bundle.model_id}"):
        document = client.get(path).json()
        assert (document["name"], document["versions"]) == (NAME, [bundle.model_id])
        assert {"name": "user", "datatype": "BYTES", "shape": [-1]} in document["inputs"]
        assert {"name": "words", "datatype": "BYTES", "shape": [-1, -1]} in document["inputs"]
        assert {"name": "price", "datatype": "FP64", "shape": [-1]} in document["inputs"]
        assert document["outputs"] == [{"name": "probability", "datatype": "FP64", "shape": [-1]}]
        assert document["parameters"]["run_id"] == "abc"
        assert client.get(f"{path}/ready").json() == {"name": NAME, "ready": True}
    assert client.get("/v2").json()["name"] == "muxrec"


def test_health(bundle: Bundle) -> None:
    served = Served(bundle.path)
    client = served.client()
    probes = ("/v2/health/ready", "/ping", "/health", f"/v2/models/{NAME}/ready")
    assert client.get("/v2/health/live").json() == {"live": True}
    assert [client.get(path).status_code for path in probes] == [503] * 4
    answer = client.post("/score", json={"rows": [{}]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    served.start()
    assert [client.get(path).status_code for path in probes] == [200] * 4
    served.app.is_draining = True
    assert [client.get(path).status_code for path in probes] == [503, 503, 503, 200]
    answer = client.post("/score", json={"rows": [{}]})
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def tried(client: Client) -> int:
    """Send every example of the description, which is answered as it says; how many there were."""
    document = client.get("/openapi.json").json()
    count = 0
    for path, operations in document["paths"].items():
        operation = operations.get("post", {})
        values = {one["name"]: one["schema"]["enum"][0] for one in operation.get("parameters", ())}
        for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
            for name, example in body["examples"].items():
                content = example["value"] if isinstance(example["value"], str) else json.dumps(example["value"])
                answer = client.post(path.format(**values), content=content, headers={"Content-Type": media_type})
                expected = operation["responses"]["200"]["content"]["application/json"]["examples"][name]["value"]
                assert (answer.status_code, answer.json()) == (200, expected)
                count += 1
    return count


def test_every_example_of_the_description_is_answered_as_it_says(client: Client) -> None:
    assert tried(client) == 7
    assert tried(Served(GOLDEN).start().client()) == 7


def test_a_csv_is_written_as_the_registry_says(tmp_path: Path) -> None:
    settings = {"separator": ";", "null_values": ["NA"]}
    bundle = make_bundle(tmp_path / "bundle", registry=REGISTRY.with_settings(csv=settings))
    client = Served(bundle.path, limits=Limits(max_columns=7)).start().client()
    assert tried(client) == 7
    text = 'user;"a,b,c,d,e,f,g,h";item\n7;,;NA\n'
    answer = client.post("/invocations", content=text, headers={"Content-Type": "text/csv"})
    assert answer.json()["predictions"] == [
        {"probability": post(client, "/score", {"rows": [{"user": 7}]})["scores"][0]}
    ]
    answer = client.post("/invocations", content="user;b;c;d;e;f;g;h\n", headers={"Content-Type": "text/csv"})
    assert answer.status_code == 413


def test_examples_fit_the_registry() -> None:
    """Numbers by the registry, where it has them, texts by name, values of a type by that."""
    fitted = {"mean": 1234.5678, "std": 100.0}
    numbers: dict[str, Any] = {"a": {"transform": "standardize", "fitted": fitted}, "b": {"transform": "log1p"}}
    features: dict[str, Any] = {name: {"type": "numeric", **settings} for name, settings in numbers.items()}
    features |= {"user": "categorical", "age": {"type": "categorical", "value_type": "integer"}}
    features |= {"flag": {"type": "categorical", "value_type": "boolean"}}
    features |= {"tags": "categorical_list", "genres": {"type": "categorical_list", "separator": ";"}}
    assert example_rows(FeatureRegistry.of(features=features)) == [
        {"a": 1230.0, "b": 1.0, "user": "user 1", "age": 17, "flag": True}
        | {"tags": ["tags 2", "tags 1"], "genres": "genres 1"},
        {"a": 1330.0, "b": 2.0, "user": "user 2", "age": 42, "flag": False}
        | {"tags": ["tags 2", "tags 1"], "genres": "genres 1;genres 2"},
    ]


@pytest.mark.parametrize("token", [None, "correct-horse"])
def test_the_page_shows_lines_for_a_shell_that_do_what_it_says(bundle: Bundle, token: str | None) -> None:
    client = Served(bundle.path, token=token).start().client()
    headers = {} if token is None else {"Authorization": "Bearer correct-horse"}
    page = client.get("/docs", headers=headers).text
    assert not re.search(r"(src|href)=.?(https?:)?//|<script|@import|url\(", page), "nothing from elsewhere"
    boxes = [html.unescape(one) for one in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    assert len(boxes) == 12
    for line, expected in zip(boxes[::2], boxes[1::2], strict=True):
        curl, silent, url, *more = shlex.split(line.replace("\\\n", ""))
        assert (curl, silent, more.pop(-2)) == ("curl", "-s", "--data-binary")
        body = more.pop()
        sent = dict(one.replace("$MUXREC_SERVE_TOKEN", "correct-horse").split(": ") for one in more[1::2])
        assert set(sent) == {"Content-Type", *headers}
        assert client.post(url.removeprefix("http://server"), content=body, headers=sent).json() == json.loads(expected)
    odd = client.get("/docs", headers={**headers, "Host": "x$(reboot)'<b>"}).text
    assert "reboot" not in odd
    assert "http://localhost:8080/score" in odd


ONE = {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["a"]}
WRONG: list[tuple[str, Any, str]] = [
    ("/score", b"", r"expected JSON; found EOF .*; send a JSON object"),
    ("/score", b"\xff", "expected JSON"),
    ("/score", b'{"rows": ' + b"[" * 300, "expected JSON; found recursion limit"),
    ("/score", [], r"expected a JSON object; found \[\]"),
    ("/score", {}, r"expected the keys rows, or context and candidates; found \[\]; see"),
    ("/score", {"rows": [], "more": 1}, r"found \['rows', 'more'\]"),
    ("/score", {"rows": {}}, "rows: expected a valid list; found {}; see /docs"),
    ("/score", {"rows": [{}, 7]}, r"rows\[1\]: expected an object; found 7"),
    (
        "/score",
        {"rows": [{"usr": 1}]},
        "expected a row with a feature of the model; found keys 'usr' in row 1; did you mean 'user'?",
    ),
    ("/score", {"rows": [{}, {"price": "x"}]}, "column 'price': expected a number; found .*'x'.* in row 2"),
    ("/score", {"rows": [{"user": 0.5}]}, "column 'user': expected categories"),
    ("/score", {"rows": [{"user": {"a": 1}}]}, "column 'user': expected categories"),
    ("/score", {"rows": [{"words": "w"}]}, "column 'words': expected a list; found str.*; send a list"),
    ("/score", {"rows": [{"words": [["w"]]}]}, "column 'words': expected "),
    ("/score", '{"rows": [{"price": 1e999}]}', "column 'price': expected finite numbers"),
    ("/score", {"context": [], "candidates": []}, r"context: expected an object; found \[\]"),
    ("/score", {"context": {"user": 1}, "candidates": [{"user": 2}]}, "'user'"),
    (INFER, {}, "inputs: expected a value; found {}"),
    (INFER, {"id": 7, "inputs": [ONE]}, "id: expected a valid string; found 7"),
    (INFER, {"inputs": [{}]}, r"inputs\[0\].name: expected a value; found {}"),
    (INFER, {"inputs": [ONE, ONE]}, r"inputs: expected each tensor once; found \['user', 'user'\]"),
    (INFER, {"inputs": [ONE | {"name": "usr"}]}, "found 'usr'; inputs are user, price, "),
    (INFER, {"inputs": [ONE | {"shape": [2]}]}, r"input 'user': expected 2 values; found 1 for shape \[2\]"),
    (
        INFER,
        {"inputs": [ONE | {"shape": [-1]}]},
        r"inputs\[0\].shape\[0\]: expected greater than or equal to 0; found -1",
    ),
    (
        INFER,
        {"inputs": [ONE | {"shape": [1, 1, 1]}]},
        r"shape: expected a list of at most 2 items .*; found \[1, 1, 1\]",
    ),
    (INFER, {"inputs": [ONE | {"shape": [1, 2], "data": ["a", "b"]}]}, r"expected shape \[rows\]; found \[1, 2\]"),
    (INFER, {"inputs": [ONE | {"datatype": "STRING"}]}, "datatype: expected 'BYTES', .*; found 'STRING'"),
    (INFER, {"inputs": [ONE | {"data": [1]}]}, r"'user' of BYTES, data\[0\]: expected a valid string; found 1"),
    (INFER, {"inputs": [ONE | {"datatype": "INT8", "data": [300]}]}, "of INT8, .*: expected less than 128; found 300"),
    (
        INFER,
        {"inputs": [ONE | {"datatype": "INT8", "data": [True]}]},
        "of INT8, .*: expected a valid integer; found True",
    ),
    (
        INFER,
        {"inputs": [{k: ONE[k] for k in ("name", "shape", "datatype")}]},
        r"expected data; found none; send `data` as JSON, or bin",
    ),
    (
        INFER,
        {"inputs": [ONE, tensor("item", "BYTES", ["a", "b"])]},
        "same number of values per column; found {'item': 2, 'user': 1}",
    ),
    (
        INFER,
        {"inputs": [ONE], "outputs": [{"name": "logit"}]},
        r"outputs\[0\].name: expected 'probability'; found 'logit'",
    ),
    (INFER, {"inputs": [tensor("words__values", "BYTES", ["a"])]}, "found 'words__values'"),
    (
        INFER,
        {"inputs": [tensor("words__values", "BYTES", ["a"]), tensor("words__offsets", "INT64", [0, 2])]},
        r"start of each row's values, from 0 to 1; found \[0, 2\]",
    ),
    (
        "/invocations",
        {},
        r"expected the keys dataframe_split, or dataframe_records, or instances, or inputs; found \[\]",
    ),
    ("/invocations", {"instances": [], "inputs": []}, r"found \['instances', 'inputs'\]"),
    ("/invocations", {"instances": [[1, 2]]}, r"instances\[0\]: expected an object; found \[1, 2\]"),
    (
        "/invocations",
        {"dataframe_split": {"columns": ["user"]}},
        "dataframe_split.data: expected a value; found {'columns': ",
    ),
    ("/invocations", {"dataframe_split": {"columns": ["user"], "data": [[1], [1, 2]]}}, "found 2 in row 2"),
    ("/invocations", {"dataframe_split": {"columns": ["a", "a"], "data": []}}, "columns of different names"),
    ("/invocations", {"inputs": {"user": 7}}, "expected a list of .* values per column; found {'user': 'int'}"),
    (
        "/invocations",
        {"inputs": {"user": [7], "age": [1, 2]}},
        "same number of values per column; found {'age': 2, 'user': 1}",
    ),
]


@pytest.mark.parametrize(("path", "body", "message"), WRONG)
def test_a_mistake_is_one_line(client: Client, path: str, body: Any, message: str) -> None:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    answer = client.post(path, content=content, headers=JSON)
    assert answer.status_code == 400, answer.text
    (line,) = answer.json().values()
    assert list(answer.json()) == ["error"]
    assert re.search(message, line), line
    assert "\n" not in line
    assert len(line) < 500


CSV = [
    ("user,price\n1", "2"),
    ("user,price\n1,x\n", "expected a number; found 'x' in row 1"),
    ("usr\n1\n", "expected a row with a feature of the model; found keys 'usr' .*; did you mean 'user'"),
    ("user,user\n1,2\n", "column names must be unique"),
    ('user\n"a\n', "quote"),
    ("", "expected rows; found an empty file"),
]


@pytest.mark.parametrize(("body", "message"), CSV)
def test_a_mistake_in_csv_is_one_line_without_a_path(client: Client, body: str, message: str) -> None:
    answer = client.post("/invocations", content=body, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 400, answer.text
    assert re.search(message, answer.json()["error"]), answer.text
    assert "/" not in answer.json()["error"]


def test_other_paths_methods_models_and_versions(client: Client) -> None:
    known = client.get(f"/v2/models/{NAME}").json()["versions"][0]
    for path, status in (
        ("/nothing", 404),
        ("/v2/", 404),
        ("/v2/models/other", 404),
        (f"/v2/models/{NAME}/versions/1", 404),
        ("/score", 405),
    ):
        answer = client.get(path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert known in client.get(f"/v2/models/{NAME}/versions/1").json()["error"]
    for path in (f"/v2/models/{NAME}/versions/1/infer", "/v2/models/..%2f..%2fetc/infer", "/v2/models//infer"):
        assert client.post(path, content="{}", headers=JSON).status_code == 404


@pytest.mark.parametrize("path", FORMS)
def test_only_plain_utf8_of_a_known_type_is_read(client: Client, path: str) -> None:
    if path == INFER:  # as clients of that protocol send it
        assert client.post(path, content=b"{}").status_code == 400
    for headers in (
        *([] if path == INFER else [{}]),
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ):
        answer = client.post(path, content=b"{}", headers=headers)
        assert (answer.status_code, list(answer.json())) == (415, ["error"])
    assert (
        client.post(path, content=b"{}", headers={"Content-Type": "application/json; charset=UTF-8"}).status_code == 400
    )


def test_the_request_id_is_taken_and_returned(client: Client) -> None:
    assert client.get("/v2", headers={"X-Request-Id": "checkout-7"}).headers["x-request-id"] == "checkout-7"
    assert client.get("/nothing", headers={"X-Request-Id": "checkout-7"}).headers["x-request-id"] == "checkout-7"
    answer = post(client, INFER, tensors_of(RAW), **{"X-Request-Id": "abc"})
    assert answer["id"] == "abc"
    for bad in ("a b", "x" * 129, '{"a"}', ""):
        assert re.fullmatch("[0-9a-f]{32}", client.get("/v2", headers={"X-Request-Id": bad}).headers["x-request-id"])
