"""No input makes the server fail: what its description allows and forbids, what is nearly right, and plain bytes.

    FUZZ=200 pytest -s tests/serving/server/test_fuzz.py

tries so many of each path, and ten times as many of each other kind, and counts the answers; a few are the default.
"""

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.bundle import Bundle
from serving.server.binary import HEADER
from serving.server.limits import Limits
from serving.server.protocol import DATATYPES
from tests.floats import floats
from tests.serving.conftest import REGISTRY, raw_frame
from tests.serving.server.app import FORMS, NAME, Served, tensors_of

pytestmark = pytest.mark.slow

FUZZ = int(os.environ.get("FUZZ", "8"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LIMITS = Limits(max_rows=50, max_body_bytes=20_000, max_list_values=100)
OF_THE_SERVER = 500  # and above, but for 503, which says that it is busy

fuzzed = settings(
    max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck), derandomize="FUZZ" not in os.environ
)
fuzzed_more = settings(fuzzed, max_examples=10 * FUZZ)


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Iterator[Served]:
    one = Served(bundle.path, limits=LIMITS).start()
    yield one
    totals: Counter[str] = Counter()
    for family in text_string_to_metric_families(one.metrics.text().decode()):
        for sample in family.samples if family.name == "muxrec_requests" else ():
            totals[sample.labels["status"]] += int(sample.value)
    sys.stdout.write(f"requests by status: {dict(sorted(totals.items()))}\n")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_requests_made_of_the_description(served: Served, mode: GenerationMode) -> None:
    description = schemathesis.openapi.from_asgi("/openapi.json", served.app)
    tried: Counter[str] = Counter()
    for result in description.get_all_operations():
        operation = result.ok()

        @fuzzed
        @given(case=operation.as_strategy(generation_mode=mode))
        def try_operation(case: Any) -> None:
            answer = case.call_and_validate(checks=CHECKS)
            tried[f"{case.method} {case.path} {answer.status_code}"] += 1

        with contextlib.suppress(Unsatisfiable):  # there is no wrong way to call a path without parameters
            try_operation()
    if mode is GenerationMode.POSITIVE:
        assert {name.split()[1] for name in tried} == set(description.raw_schema["paths"])
        for path in ("/score", "/invocations"):
            assert tried[f"POST {path} 200"] > 0


def answered(served: Served, path: str, body: bytes, media_type: str = "application/json", **headers: str) -> int:
    """Status of an answer that is sound: scores in [0, 1], or one line that is not the server's fault."""
    answer = served.client().post(path, content=body, headers={"Content-Type": media_type} | headers)
    document = answer.json()
    if answer.status_code == 200:
        found = document.get("scores") or document.get("predictions") or document.get("outputs")
        assert found is not None or b"[]" in answer.content
        return 200
    assert answer.status_code in (400, 404, 405, 413, 415), answer.text
    assert list(document) == ["error"]
    assert "\n" not in document["error"]
    return answer.status_code


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    floats(),
    st.text(max_size=20),
    st.sampled_from(["", "\0", "\ud800", "a|b", "\x1f", "1e5", 2**63, -(2**63) - 1, 2**64, 1e308, -0.0, 5e-324]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
names = st.sampled_from([feature.name for feature in REGISTRY.features]) | st.text(max_size=6)
rows = st.dictionaries(names, values, max_size=6)
columns = st.dictionaries(names, st.lists(values, max_size=4), max_size=5)
tensors = st.fixed_dictionaries(
    {
        "name": names | st.sampled_from(["words__values", "words__offsets", "genres__values", "genres__offsets"]),
        "shape": st.lists(st.integers(-1, 5) | st.just(2**31 - 1), max_size=3) | values,
        "datatype": st.sampled_from(DATATYPES) | scalars,
        "data": st.lists(values, max_size=6) | values,
    },
    optional={"parameters": values},
)
bodies = st.one_of(
    st.fixed_dictionaries({"rows": st.lists(rows, max_size=5)}),
    st.fixed_dictionaries({"context": rows | values, "candidates": st.lists(rows | values, max_size=5)}),
    st.fixed_dictionaries(
        {"inputs": st.lists(tensors | values, max_size=4)}, optional={"id": values, "outputs": values}
    ),
    st.fixed_dictionaries({"inputs": columns | st.lists(rows, max_size=4)}),
    st.fixed_dictionaries({"instances": st.lists(rows | values, max_size=4)}),
    st.fixed_dictionaries({"dataframe_records": st.lists(rows, max_size=4) | values}),
    st.fixed_dictionaries(
        {
            "dataframe_split": st.fixed_dictionaries(
                {
                    "columns": st.lists(names, max_size=4) | values,
                    "data": st.lists(st.lists(values, max_size=4), max_size=4) | values,
                }
            )
        },
        optional={"params": values},
    ),
    values,
)
paths = st.sampled_from(FORMS)


@fuzzed_more
@given(path=paths, body=bodies)
def test_bodies_that_are_nearly_right(served: Served, path: str, body: Any) -> None:
    answered(served, path, json.dumps(body).encode())


@fuzzed_more
@given(path=paths, body=bodies)
def test_bodies_in_raw_unicode(served: Served, path: str, body: Any) -> None:
    answered(served, path, json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"))


WHOLE = [
    json.dumps({"rows": raw_frame(3).to_dicts()}).encode(),
    json.dumps(tensors_of(raw_frame(3))).encode(),
    json.dumps({"dataframe_records": raw_frame(3).to_dicts()}).encode(),
]


@fuzzed_more
@given(data=st.data())
def test_good_bodies_with_some_bytes_changed(served: Served, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, 2))
    body = bytearray(WHOLE[number])
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(body)))
        stop = min(len(body), start + data.draw(st.integers(0, 3)))
        body[start:stop] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"[" * 50, b"{", b"null", b"1" * 5000, b"-"])
        )
    answered(served, FORMS[number], bytes(body))


sizes = st.integers(0, 40) | st.sampled_from([-1, 2**31, 2**63, 2**64 + 4])
raw_tensors = st.fixed_dictionaries(
    {
        "name": names,
        "shape": st.lists(st.integers(0, 3) | st.just(2**31 - 1), min_size=1, max_size=2),
        "datatype": st.sampled_from(DATATYPES),
        "parameters": st.fixed_dictionaries({"binary_data_size": sizes | scalars}),
    }
)


@fuzzed_more
@given(inputs=st.lists(raw_tensors, max_size=3), data=st.binary(max_size=40), shift=st.sampled_from([0, 0, 0, 1, -1]))
def test_raw_tensors(served: Served, inputs: Any, data: bytes, shift: int) -> None:
    text = json.dumps({"inputs": inputs}).encode()
    answered(served, FORMS[1], text + data, **{HEADER: str(len(text) + shift)})


@fuzzed_more
@given(path=paths, body=st.binary(max_size=200))
def test_bytes(served: Served, path: str, body: bytes) -> None:
    assert answered(served, path, body) != 200


csv_bytes = st.one_of(
    st.binary(max_size=100),
    st.lists(
        st.sampled_from([b"user", b"price", b"genres", b",", b"\n", b'"', b"\r", b"7", b"x", b"\0", b"\xff", b" "]),
        max_size=20,
    ).map(b"".join),
)


@fuzzed_more
@given(body=csv_bytes)
def test_csv(served: Served, body: bytes) -> None:
    answered(served, "/invocations", b"user,price,genres\n" + body, "text/csv")
    answered(served, "/invocations", body, "text/csv")


@fuzzed_more
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "x"]),
    path=st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from(["/docs", "/metrics", f"/v2/models/{NAME}", "/score"]),
    headers=st.dictionaries(
        st.sampled_from(
            ["X-Request-Id", "Content-Type", "Content-Length", "Content-Encoding", "Authorization", "Accept"]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30).map(
            lambda text: text.encode("latin-1")
        ),
    ),
)
def test_methods_paths_and_headers(served: Served, method: str, path: str, headers: dict[str, bytes]) -> None:
    answer = served.client().request(method, quote("/" + path.lstrip("/")), headers=headers)
    assert answer.status_code < OF_THE_SERVER, answer.text
