"""A new version takes its place in one step, or is refused and the old one stays."""

import errno
import json
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.errors import InputError
from serving.bundle import Bundle
from serving.server.hosting import ModelHost
from serving.server.limits import RefusedError
from tests.serving.conftest import make_bundle, reseal, table
from tests.serving.server.app import NAME, Served

LOAD = f"/v2/repository/models/{NAME}/load"
ROW = {"rows": [{"user": 7, "age": 30}]}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Three models whose scores differ."""
    folder = tmp_path_factory.mktemp("versions")
    return [make_bundle(folder / f"v{k}", table=np.float32(k + 1) * table()) for k in range(3)]


class Switch:
    """A source that points somewhere else when told."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> Path:
        return self.path


def answer(served: Served) -> tuple[str, float]:
    document = served.client().post("/score", json=ROW).json()
    return document["version"], document["scores"][0]


def test_a_new_version_is_taken_and_the_one_before_stays_for_its_own_url(others: list[Bundle]) -> None:
    switch = Switch(others[0].path)
    served = Served(switch).start()
    client, ids = served.client(), [bundle.model_id for bundle in others]
    first = answer(served)
    assert first[0] == ids[0]
    assert client.post(LOAD).json() == {"name": NAME, "version": ids[0], "outcome": "unchanged"}
    switch.path = others[1].path
    assert answer(served) == first, "not before it is asked for"
    assert client.post(LOAD).json() == {"name": NAME, "version": ids[1], "outcome": "loaded"}
    second = answer(served)
    assert second[0] == ids[1]
    assert second[1] != first[1]
    assert client.get(f"/v2/models/{NAME}").json()["versions"] == [ids[1], ids[0]]
    body = {"inputs": [{"name": "user", "datatype": "INT64", "shape": [1], "data": [7]}]}
    old, new = (client.post(f"/v2/models/{NAME}/versions/{one}/infer", json=body).json() for one in ids[:2])
    assert [old["model_version"], new["model_version"]] == ids[:2]
    assert old["outputs"][0]["data"] != new["outputs"][0]["data"]
    switch.path = others[2].path
    client.post(LOAD)
    assert client.get(f"/v2/models/{NAME}").json()["versions"] == [ids[2], ids[1]]
    assert client.get(f"/v2/models/{NAME}/versions/{ids[0]}").status_code == 404
    switch.path = others[1].path  # back again
    client.post(LOAD)
    assert answer(served) == second
    assert client.get(f"/v2/models/{NAME}").json()["versions"] == [ids[1], ids[2]]


def test_versions_that_are_dropped_leave_the_memory(others: list[Bundle]) -> None:
    switch = Switch(others[0].path)
    served = Served(switch).start()
    answer(served)
    first = weakref.ref(served.host.find().scorer)
    for k in (1, 2, 1):
        switch.path = others[k].path
        served.host.refresh()
        answer(served)
    assert first() is None


def damage_bytes(path: Path) -> None:
    content = bytearray((path / "table.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "table.safetensors").write_bytes(content)


def damage_scores(path: Path) -> None:
    """A bundle whose checksums are right and whose network is another one's."""
    content = bytearray((path / "table.safetensors").read_bytes())
    content[-4:] = np.float32(9).tobytes()
    (path / "table.safetensors").write_bytes(content)
    reseal(path)


def cut_short(path: Path) -> None:
    content = (path / "dense.onnx").read_bytes()
    (path / "dense.onnx").write_bytes(content[: len(content) // 2])


def lose(path: Path) -> None:
    (path / "golden.parquet").unlink()


def newer(path: Path) -> None:
    document = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(document | {"format_version": 99}))


@pytest.mark.parametrize("damage", [damage_bytes, damage_scores, cut_short, lose, newer, shutil.rmtree])
def test_a_damaged_version_is_refused_and_the_old_one_stays(
    others: list[Bundle], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    switch = Switch(others[0].path)
    served = Served(switch).start()
    before = answer(served)
    switch.path = Path(shutil.copytree(others[1].path, tmp_path / "copy"))
    damage(switch.path)
    refused = served.client().post(LOAD)
    assert refused.status_code == 409
    assert "expected" in refused.json()["error"]
    assert answer(served) == before
    assert served.client().get("/v2/health/ready").status_code == 200
    shutil.rmtree(switch.path, ignore_errors=True)
    shutil.copytree(others[1].path, switch.path)
    assert served.client().post(LOAD).json()["outcome"] == "loaded"
    assert answer(served)[0] == others[1].model_id


def test_the_golden_rows_have_the_last_word(others: list[Bundle], tmp_path: Path) -> None:
    path = Path(shutil.copytree(others[1].path, tmp_path / "copy"))
    damage_scores(path)
    Bundle.open(path)  # every checksum is right
    with pytest.raises(InputError, match=r"golden rows to score as in training, within .*; found a difference"):
        ModelHost(lambda current: path, NAME).refresh()


def test_a_directory_that_is_still_being_copied_is_taken_when_it_is_whole(others: list[Bundle], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    host = ModelHost(lambda current: copy, NAME)
    for name in ("manifest.json", "dense.onnx", "golden.parquet", "profile.json"):
        shutil.copy(others[0].path / name, copy / name)
        with pytest.raises(InputError):
            host.refresh()
    with pytest.raises(InputError, match=r"expected a file of .* bytes; found no file"):
        host.refresh()
    with pytest.raises(RefusedError):
        host.find()
    shutil.copy(others[0].path / "table.safetensors", copy / "table.safetensors")
    assert host.refresh() == "loaded"


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_what_was_refused_for_want_of_the_machine_is_tried_again(
    others: list[Bundle], monkeypatch: pytest.MonkeyPatch, failure: Exception, is_wrapped: bool
) -> None:
    def fail(path: Path) -> Bundle:
        try:
            raise failure
        except (OSError, MemoryError):
            if is_wrapped:
                raise InputError(f"{path}: expected JSON") from None
            raise

    host = ModelHost(lambda current: others[0].path, NAME)
    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "open", fail)
        with pytest.raises(InputError):
            host.refresh()
    assert host.refresh() == "loaded"


def test_other_permissions_are_a_reason_to_look_again(
    others: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(others[1].path, tmp_path / "copy"))
    host = ModelHost(lambda current: path, NAME)

    def refuse(path: Path) -> Bundle:
        raise InputError("expected a bundle")

    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "open", refuse)
        with pytest.raises(InputError):
            host.refresh()
    with pytest.raises(InputError, match="expected a bundle"):
        host.refresh()
    (path / "dense.onnx").chmod(0o600)
    assert host.refresh() == "loaded"


def test_a_load_says_again_why_a_bundle_is_refused_and_a_watch_does_not(
    others: list[Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    switch = Switch(others[0].path)
    served = Served(switch).start()
    switch.path = Path(shutil.copytree(others[1].path, tmp_path / "copy"))
    damage_bytes(switch.path)
    first, second = served.client().post(LOAD), served.client().post(LOAD)
    assert first.status_code == second.status_code == 409
    assert first.json() == second.json()
    caplog.clear()
    stop = threading.Event()
    watch = threading.Thread(target=served.host.watch, args=(0.01, stop))
    watch.start()
    stop.wait(0.1)
    stop.set()
    watch.join()
    assert caplog.records == []


def test_a_source_that_cannot_be_asked_changes_nothing(others: list[Bundle]) -> None:
    def resolve(current: Path | None) -> Path:
        if current is None:
            return others[0].path
        assert current == others[0].path
        raise InputError("expected a registry that answers", found="none")

    host = ModelHost(resolve, NAME)
    assert host.refresh() == "loaded"
    with pytest.raises(InputError, match="expected a registry that answers"):
        host.refresh()
    assert host.find().version == others[0].model_id


def test_the_same_model_elsewhere_is_no_new_version(others: list[Bundle], tmp_path: Path) -> None:
    paths = iter([others[0].path, Path(shutil.copytree(others[0].path, tmp_path / "copy"))])
    host = ModelHost(lambda current: next(paths), NAME)
    assert host.refresh() == "loaded"
    scorer = host.find().scorer
    assert host.refresh() == "unchanged"
    assert host.find().scorer is scorer


def test_only_the_machine_itself_may_ask_for_a_load_where_there_is_no_token(others: list[Bundle]) -> None:
    served = Served(others[0].path).start()
    for address in ("10.0.0.9", "::2", "not an address"):
        answer = served.client(address).post(LOAD)
        assert answer.status_code == 403
        assert "start the server with a token" in answer.json()["error"]
    for address in ("127.0.0.1", "127.8.9.1", "::1"):
        assert served.client(address).post(LOAD).status_code == 200
    assert served.client().post("/v2/repository/models/other/load").status_code == 404


def test_scores_are_of_the_version_that_they_name_while_versions_change(others: list[Bundle]) -> None:
    switch = Switch(others[0].path)
    served = Served(switch).start()
    expected: dict[str, float] = {}
    for bundle in others:
        switch.path = bundle.path
        served.host.refresh()
        version, score = answer(served)
        expected[version] = score
    assert len(set(expected.values())) == 3
    stop, seen, wrong = threading.Event(), set[str](), list[Any]()

    def ask() -> None:
        client = served.client()
        while not stop.is_set():
            one = client.post("/score", json=ROW)
            if one.status_code != 200 or one.json()["scores"] != [expected[one.json()["version"]]]:
                wrong.append(one.text)
            seen.add(one.json()["version"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for k in range(9):
        switch.path = others[k % 3].path
        assert served.host.refresh() == "loaded"
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert seen == set(expected)
