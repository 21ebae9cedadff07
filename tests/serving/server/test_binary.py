"""The Open Inference Protocol as NVIDIA's own client speaks it: raw tensors and JSON, bit for bit; abuses."""

import json
import re
import struct
from typing import Any

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from serving.bundle import Bundle
from serving.server.binary import HEADER
from serving.server.limits import Limits
from tests.serving.conftest import raw_frame
from tests.serving.server.app import JSON, NAME, Client, Served, tensor

INFER = f"/v2/models/{NAME}/infer"
RAW = raw_frame(40, seed=11)


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Client:
    return Served(bundle.path, limits=Limits(max_rows=50, max_body_bytes=20_000)).start().client()


def rows(client: Client, *rows: dict[str, Any]) -> list[float]:
    """Scores by row JSON."""
    answer = client.post("/score", content=json.dumps({"rows": rows}), headers=JSON)
    assert answer.status_code == 200, answer.text
    return answer.json()["scores"]


def given(name: str, values: Any, datatype: str, *, binary: bool = True) -> triton.InferInput:
    array = np.asarray(values)
    one = triton.InferInput(name, list(array.shape), datatype)
    return one.set_data_from_numpy(array, binary_data=binary)


def infer(client: Client, *inputs: triton.InferInput, binary: bool | None = None) -> list[float]:
    """Scores by the bodies that the client makes and reads; `binary`: what it asks for, None: its default."""
    outputs = None if binary is None else [triton.InferRequestedOutput("probability", binary_data=binary)]
    body, length = triton.InferenceServerClient.generate_request_body(list(inputs), outputs)
    answer = client.post(INFER, content=body, headers={} if length is None else {HEADER: str(length)})
    assert answer.status_code == 200, answer.text
    found = answer.headers.get(HEADER)
    assert (found is None) == (binary is False)
    result = triton.InferResult.from_response_body(answer.content, header_length=found and int(found))
    scores = result.as_numpy("probability")
    assert scores is not None
    assert scores.dtype == np.float64 or not len(scores)
    return scores.tolist()


# --- values -----------------------------------------------------------------------------------------------------------

NUMBERS = {f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
NUMBERS |= {"FP16": "float16", "FP32": "float32", "FP64": "float64"}


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_of_every_datatype(client: Client, datatype: str) -> None:
    dtype = np.dtype(NUMBERS[datatype])
    numbers = np.array([0, 7, 120], dtype=dtype) * dtype.type(1 if dtype.kind in "iu" else 0.5)
    ids = np.array([0, 7, np.iinfo(dtype).max if dtype.kind in "iu" else 2**10], dtype=dtype)
    expected = rows(client, *({"price": a, "user": b} for a, b in zip(numbers.tolist(), ids.tolist(), strict=True)))
    assert len(set(expected)) == 3
    for binary in (True, False):
        inputs = given("price", numbers, datatype, binary=binary), given("user", ids, datatype, binary=binary)
        assert infer(client, *inputs) == expected
        assert infer(client, *inputs, binary=False) == expected


def test_texts_booleans_and_bfloat16(client: Client) -> None:
    texts = ["7", "", "ß", "名\0x", "007", "None", "a" * 300]
    expected = rows(client, *({"user": text} for text in texts))
    assert infer(client, given("user", np.array(texts, dtype=object), "BYTES")) == expected
    assert infer(client, given("user", np.array([text.encode() for text in texts], dtype=object), "BYTES")) == expected
    flags = [True, False]
    assert infer(client, given("user", flags, "BOOL")) == rows(client, *({"user": flag} for flag in flags))
    numbers = np.array([1.5, -3.0, np.nan], dtype=np.float32)
    assert infer(client, given("age", numbers, "BF16")) == rows(client, {"age": 1.5}, {"age": -3.0}, {})


def test_lists(client: Client) -> None:
    expected = rows(client, {"words": ["w1", "w2"]}, {"words": ["w3", "w1"]})
    assert infer(client, given("words", np.array([["w1", "w2"], ["w3", "w1"]], dtype=object), "BYTES")) == expected
    values = given("words__values", np.array(["w1", "w2", "w3"], dtype=object), "BYTES")
    offsets = given("words__offsets", np.array([0, 2, 2, 3]), "INT64")
    assert infer(client, values, offsets) == rows(client, {"words": ["w1", "w2"]}, {"words": []}, {"words": ["w3"]})
    genres = given("genres", np.array([["a|b"], ["c"]], dtype=object), "BYTES")
    assert infer(client, genres) == rows(client, {"genres": "a|b"}, {"genres": "c"})


def test_what_is_missing(client: Client) -> None:
    """NaN in a float tensor, a tensor that is not sent, and null in JSON, next to raw tensors."""
    users = given("user", [7.0, np.nan], "FP64")
    assert infer(client, users) == rows(client, {"user": 7}, {"user": None})
    raw = struct.pack("<2d", 1.5, np.nan)
    document = {
        "inputs": [
            tensor("user", "BYTES", ["a", None]),
            {"name": "price", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": len(raw)}},
            tensor("age", "INT8", [None, 3]),
        ]
    }
    text = json.dumps(document).encode()
    answer = client.post(INFER, content=text + raw, headers={HEADER: str(len(text))})
    expected = rows(client, {"user": "a", "price": 1.5}, {"age": 3})
    assert answer.json()["outputs"][0]["data"] == expected


def test_no_rows(client: Client) -> None:
    assert infer(client, given("user", np.zeros(0, dtype=np.int64), "INT64")) == []
    assert infer(client, given("user", np.zeros(0, dtype=object), "BYTES"), binary=False) == []


# --- the client as a program ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_client_with_its_defaults(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, "--name", NAME).start()
    here = Served(versions[0].path).start().client()
    users, prices = np.array([str(k) for k in range(40)], dtype=object), np.arange(40, dtype=np.float32) / 3
    expected = rows(here, *({"user": a, "price": b} for a, b in zip(users, prices.tolist(), strict=True)))
    inputs = [given("user", users, "BYTES"), given("price", prices, "FP32")]
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        for settings in ({}, {"model_version": versions[0].model_id}, {"response_compression_algorithm": "gzip"}):
            result = client.infer(NAME, inputs, request_id="of mine", **settings)
            assert result.as_numpy("probability").tolist() == expected
            assert result.get_response()["id"] == "of mine"
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert client.get_model_metadata(NAME)["name"] == NAME
        client.load_model(NAME)
        calls = {
            r"\[415\] expected a plain body; found 'gzip'; do not compress it": lambda: client.infer(
                NAME, inputs, request_compression_algorithm="gzip"
            ),
            r"\[415\] expected a plain body; found 'deflate'": lambda: client.infer(
                NAME, inputs, request_compression_algorithm="deflate"
            ),
            r"\[400\] outputs\[0\].parameters.classification: expected null; found 2": lambda: client.infer(
                NAME, inputs, outputs=[triton.InferRequestedOutput("probability", class_count=2)]
            ),
            r"\[404\] expected model 'clicks'; found 'other'": lambda: client.get_model_metadata("other"),
            r"\[404\] expected a path of this server; .* and /v2 for": lambda: client.get_model_config(NAME),
            r"\[404\] expected a path of this server; see": client.get_model_repository_index,
            r"\[404\] expected a path of this": lambda: client.get_inference_statistics(NAME),
            r"\[404\] expected a path of": lambda: client.unload_model(NAME),
        }
        for message, call in calls.items():
            with pytest.raises(InferenceServerException, match=message):
                call()


# --- bytes that are nearly right --------------------------------------------------------------------------------------


def raw(datatype: str, shape: Any, size: Any, name: str = "user") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


TWO = struct.pack("<I1sI1s", 1, b"a", 1, b"b")
WRONG: list[tuple[Any, bytes, str]] = [
    ([raw("BYTES", [2], 9)], TWO, "'user': expected 2 texts; found 1 whole ones in 9 bytes"),
    ([raw("BYTES", [2], 11)], TWO, "'user': expected a binary_data_size of 0 to 10, as the body has; found 11"),
    ([raw("BYTES", [2], -1)], TWO, "binary_data_size: expected greater than or equal to 0; found -1"),
    ([raw("BYTES", [2], 10**30)], TWO, "0 to 10, as the body has; found 10000"),
    ([raw("BYTES", [2], True)], TWO, "binary_data_size: expected a valid integer; found True"),
    ([raw("BYTES", [2], "10")], TWO, "binary_data_size: expected a valid integer; found '10'"),
    ([raw("BYTES", [2], None)], TWO, "'user': expected data; found none"),
    ([raw("BYTES", [1], 10)], TWO, "'user': expected 1 texts; found 5 bytes more; correct the shape"),
    ([raw("BYTES", [3], 10)], TWO, "'user': expected 3 texts; found 10 bytes"),
    ([raw("BYTES", [2**31 - 1], 10)], TWO, "'user': expected 2147483647 texts; found 10 bytes"),
    ([raw("BYTES", [2], 8)], struct.pack("<II", 0xFFFFFFFF, 0), "expected 2 texts; found 0 whole ones in 8 bytes"),
    ([raw("BYTES", [2], 9)], struct.pack("<I1sI", 1, b"a", 1), "expected 2 texts; found 1 whole ones in 9 bytes"),
    ([raw("BYTES", [2], 9)], struct.pack("<I5s", 4, b"aaaaa"), "expected 2 texts; found 1 whole ones in 9 bytes"),
    (
        [raw("BYTES", [1], 6)],
        struct.pack("<I2s", 2, b"\xff\xfe"),
        "'user': expected UTF-8; found other bytes in text 1",
    ),
    ([raw("BYTES", [2], 10)], TWO + b"more", "expected no bytes after the last tensor; found 4"),
    ([raw("INT32", [2], 7)], b"1234567", "'user': expected 8 bytes for 2 values of INT32; found 7"),
    ([raw("INT64", [2**31 - 1, 2**31 - 1], 8)], bytes(8), "bytes for 4611686014132420609 values of INT64; found 8"),
    ([raw("BOOL", [2], 2)], b"\1\2", "'user': expected bytes of 0 or 1; found 2; send booleans"),
    ([raw("FP32", [1], 4)], struct.pack("<f", 2**24), r"integers below 2\^24 in FP32; found 16777216; send INT64"),
    ([raw("FP32", [1], 4)], struct.pack("<f", np.inf), r"integers below 2\^24 in FP32; found inf"),
    ([raw("FP32", [1], 4)], struct.pack("<f", 0.5), "column 'user': expected categories"),
    ([raw("FP32", [1], 4, "price")], struct.pack("<f", np.inf), "column 'price': expected finite numbers"),
    ([raw("BYTES", [2], 10, "price")], TWO, "column 'price': expected a number; found .*'a'.* in row 1"),
    ([raw("BYTES", [2], 10) | {"data": ["a", "b"]}], TWO, "'user': expected data; found both"),
    (
        [raw("BYTES", [2], 10) | {"parameters": [1]}],
        TWO,
        r"inputs\[0\].parameters: expected a valid dictionary .*; found \[1\]",
    ),
    ([raw("BYTES", [-2], 10)], TWO, r"shape\[0\]: expected greater than or equal to 0; found -2"),
]


@pytest.mark.parametrize(("inputs", "data", "message"), WRONG)
def test_bytes_that_do_not_fit(client: Client, inputs: Any, data: bytes, message: str) -> None:
    text = json.dumps({"inputs": inputs}).encode()
    error(client.post(INFER, content=text + data, headers={HEADER: str(len(text))}), message)


def error(answer: Any, message: str) -> None:
    assert answer.status_code == 400, answer.text
    (line,) = answer.json().values()
    assert re.search(message, line), line
    assert "\n" not in line
    assert len(line) < 500


def test_a_header_that_does_not_fit(client: Client) -> None:
    text = json.dumps({"inputs": [raw("BYTES", [2], 10)]}).encode()
    for length in ("-1", "", "x", "1e2", "²", "9" * 5000, str(len(text) + 11), f"{len(text)}, 3", "0x10", " "):
        headers = [(HEADER.encode(), length.encode())]
        error(
            client.post(INFER, content=text + TWO, headers=headers), f"{HEADER}: expected the number of bytes of JSON"
        )
    twice = [(HEADER, str(len(text))), (HEADER, str(len(text)))]
    error(client.post(INFER, content=text + TWO, headers=twice), f"{HEADER}: expected the number")
    for length in (0, len(text) - 1, len(text) + 1):
        error(client.post(INFER, content=text + TWO, headers={HEADER: str(length)}), "expected JSON")
    error(client.post(INFER, content=text, headers=JSON), f"expected the header {HEADER} with binary data; found none")
    whole = json.dumps({"inputs": [tensor("user", "BYTES", ["a", "b"])]}).encode()
    answer = client.post(INFER, content=whole, headers={HEADER: str(len(whole))})
    assert answer.status_code == 200, "JSON alone"


def test_limits_hold_for_bytes(client: Client) -> None:
    for shape in ([51], [51, 1], [2**23, 0]):
        count = int(np.prod(shape))
        text = json.dumps({"inputs": [raw("INT8", shape, count, "words" if shape[1:] == [0] else "user")]}).encode()
        answer = client.post(INFER, content=text + bytes(count), headers={HEADER: str(len(text))})
        assert (answer.status_code, answer.json()["error"].partition(";")[0]) == (
            413,
            "expected at most 50 rows per request",
        )
    answer = client.post(INFER, content=b"{}".ljust(20_001), headers={HEADER: "2"})
    assert answer.status_code == 413


# --- what parameters say of data --------------------------------------------------------------------------------------

ONE = tensor("user", "BYTES", ["7"])


def saying(content_type: Any, one: dict[str, Any] = ONE) -> dict[str, Any]:
    return one | {"parameters": {"content_type": content_type}}


def test_content_types_that_mean_what_is_meant_here(client: Client) -> None:
    """As MLServer's own codecs write them: `pd` of the request, `np` and `str` of its inputs."""
    number = tensor("price", "FP64", [1.5], [1, 1])
    expected = rows(client, {"user": "7", "price": 1.5})
    for body in (
        {"inputs": [saying("str", tensor("user", "BYTES", ["7"], [1, 1])), saying("np", number)]},
        {"inputs": [ONE, number], "parameters": {"content_type": "pd"}},
        {"inputs": [saying("str"), number], "parameters": {"content_type": "np", "priority": 3}},
        {"inputs": [ONE, number], "outputs": [saying("np", {"name": "probability"})]},
    ):
        answer = client.post(INFER, content=json.dumps(body))
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"inputs": [saying("base64")]},
            r"inputs\[0\].parameters.content_type: expected 'np', 'pd' or 'str'; found 'base64'",
        ),
        ({"inputs": [saying("datetime")]}, "found 'datetime'"),
        ({"inputs": [saying("pd_json")]}, "found 'pd_json'"),
        ({"inputs": [saying(7)]}, "content_type: .* found 7"),
        ({"inputs": [saying(["str"])]}, r"found \['str'\]"),
        ({"inputs": [saying("str", tensor("user", "INT8", [7]))]}, "expected content_type np or pd; found 'str'"),
        ({"inputs": [ONE], "parameters": {"content_type": "base64"}}, "^parameters.content_type: .* 'base64'"),
        ({"inputs": [ONE], "parameters": 7}, "parameters: expected a valid dictionary .*; found 7"),
        (
            {"inputs": [ONE], "parameters": {"binary_data_output": 1}},
            "parameters.binary_data_output: expected a valid boolean; found 1",
        ),
        (
            {"inputs": [ONE], "outputs": [{"name": "probability", "parameters": {"binary_data": "yes"}}]},
            r"outputs\[0\].parameters.binary_data: expected a valid boolean; found 'yes'",
        ),
        (
            {"inputs": [ONE | {"parameters": {"shared_memory_region": "x"}}]},
            "shared_memory_region: expected null; found 'x'",
        ),
    ],
)
def test_what_is_not_understood_is_refused(client: Client, body: Any, message: str) -> None:
    error(client.post(INFER, content=json.dumps(body)), message)
