"""State files are whole or absent; a run that was interrupted anywhere ends bit for bit like one that was not."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from features.errors import InputError
from recsys import checkpoint
from recsys.checkpoint import load_state, save_state
from tests.recsys.conftest import Cut, Training, training_of

OPTIMIZERS = ("adam", "rowwise_adagrad")
TIMINGS = ("seconds", "eval_seconds")


# The file


def test_what_is_saved_is_read_back(tmp_path: Path):
    tensors = {
        "table": torch.randn(5, 3),
        "turned": torch.arange(6).view(2, 3).t(),
        "number": torch.tensor(7, dtype=torch.int64),
        "half": torch.tensor([0.1], dtype=torch.float64),
        "nothing": torch.zeros(0, 4),
        "random": torch.get_rng_state(),
    }
    numbers = {"loss": 0.1 + 0.2, "best": None, "history": [{"auc": 1 / 3}], "unicode": "\u65e5"}
    save_state(tmp_path / "new" / "state", tensors, numbers)
    found, found_numbers = load_state(tmp_path / "new" / "state")
    assert found_numbers == numbers
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


def test_others_may_read_the_file(tmp_path: Path):
    save_state(tmp_path / "state", {"a": torch.zeros(1)}, {})
    (tmp_path / "other").touch()
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_was_read_is_not_the_file(tmp_path: Path):
    save_state(tmp_path / "state", {"a": torch.zeros(1000)}, {})
    before = (tmp_path / "state").read_bytes()
    load_state(tmp_path / "state")[0]["a"].add_(1)
    assert (tmp_path / "state").read_bytes() == before


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_state(tmp_path / "state", {"a": torch.zeros(1)}, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing(OSError(28, "No space left on device")))
        with pytest.raises(InputError, match=r"cannot write .*state; found No space left on device; free space"):
            save_state(tmp_path / "state", {"a": torch.ones(1)}, {"step": 2})
    assert load_state(tmp_path / "state")[1] == {"step": 1}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", failing(checkpoint.SafetensorError("I/O error: (os error 28)")))
        with pytest.raises(InputError, match=r"cannot write .*state; found I/O error"):
            save_state(tmp_path / "state", {"a": torch.ones(1)}, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing(Cut()))
        with pytest.raises(Cut):
            save_state(tmp_path / "state", {"a": torch.zeros(1)}, {})
    (tmp_path / ".tmpXyZ123").write_bytes(b"half a file")  # as safetensors names its own
    assert len(list(tmp_path.iterdir())) == 2
    save_state(tmp_path / "state", {"a": torch.zeros(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_place_that_cannot_be_written_to(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*state; found"):
        save_state(tmp_path / "file" / "state", {"a": torch.zeros(1)}, {})


@pytest.mark.parametrize(
    "content", [b"", b"not a state", b"\xff" * 100, (9).to_bytes(8, "little") + b"{}       "], ids=range(4)
)
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(InputError, match=r"state: expected a checkpoint; found .*; remove it to start the run again"):
        load_state(tmp_path / "state")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path):
    save_state(tmp_path / "state", {"a": torch.arange(9)}, {"step": 1})
    content = (tmp_path / "state").read_bytes()
    for length in range(len(content)):
        (tmp_path / "state").write_bytes(content[:length])
        with pytest.raises(InputError, match="expected a checkpoint"):
            load_state(tmp_path / "state")


def test_names_of_optimizer_state():
    network = nn.Linear(2, 1)
    optimizer, other = (torch.optim.Adam(network.parameters(), lr=0.1) for _ in range(2))
    network(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    tensors = checkpoint.optimizer_tensors(optimizer)
    assert sorted(tensors) == [f"{k}.{name}" for k in "01" for name in ("exp_avg", "exp_avg_sq", "step")]
    checkpoint.load_optimizer_tensors(other, tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in checkpoint.optimizer_tensors(other).items())
    assert checkpoint.unprefixed("a", checkpoint.prefixed("a", tensors) | {"ab.0": torch.zeros(1)}) == tensors


# Interrupted runs

Start = Callable[[], Training]


def start_in(data: Path, directory: Path, optimizer: str, **trainer: Any) -> Training:
    return training_of(data, directory, embedding={"optimizer": optimizer}, checkpoint_steps=3, **trainer)


def outcome(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything that a run leaves behind, without its timings."""
    tensors, numbers = load_state(directory / "checkpoint" / "state.safetensors")
    best, _ = load_state(directory / "checkpoint" / "best.safetensors")
    numbers = {key: value for key, value in numbers.items() if key not in TIMINGS}
    return numbers | {"log": (directory / "log.jsonl").read_text()}, tensors | checkpoint.prefixed("best", best)


def assert_same_outcome(directory: Path, other: Path) -> None:
    (numbers, tensors), (other_numbers, other_tensors) = outcome(directory), outcome(other)
    assert numbers == other_numbers
    assert tensors.keys() == other_tensors.keys()
    different = [name for name, tensor in tensors.items() if not torch.equal(tensor, other_tensors[name])]
    assert different == []


def failing(error: BaseException, times: Iterator[bool] | None = None, then: Any = None) -> Any:
    """A function that raises where `times` says so, else does what `then` does."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        if times is None or next(times):
            raise error
        return then(*args, **kwargs)

    return fail


@pytest.fixture(scope="module", params=OPTIMIZERS)
def whole(request: pytest.FixtureRequest, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The table optimiser, and the directory of a run that was never interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    state = start_in(planted, directory, request.param).fit()
    assert [record["global_step"] for record in state.history] == [13, 26, 39]
    return request.param, directory


@pytest.mark.parametrize("is_after", [False, True], ids=["before the update", "after it"])
def test_cut_in_a_step(whole: tuple[str, Path], planted: Path, tmp_path: Path, is_after: bool):
    """One run that dies again and again: after 3 steps of a process, then after 7, ..."""
    optimizer, directory = whole
    for num_steps in itertools.cycle([3, 7, 1, 4, 16, 5]):
        training = start_in(planted, tmp_path, optimizer)
        step, is_time = training.trainer.step, (k == num_steps for k in itertools.count())

        def cut(batch: Any, step: Any = step, is_time: Iterator[bool] = is_time) -> Tensor:
            dies = next(is_time)
            if dies and not is_after:
                raise Cut
            loss = step(batch)
            if dies:
                raise Cut
            return loss

        training.trainer.step = cut  # type: ignore[method-assign]
        try:
            training.fit()
        except Cut:
            continue
        break
    assert_same_outcome(tmp_path, directory)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("place", ["evaluate", "on_epoch"])
def test_cut_at_the_end_of_an_epoch(
    whole: tuple[str, Path], planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int
):
    """The record of an epoch is reported even if the run was interrupted after saving it."""
    optimizer, directory = whole
    records: list[Any] = []
    is_time = (k == number for k in itertools.count())
    with monkeypatch.context() as patch:
        if place == "evaluate":
            from recsys import trainer

            patch.setattr(trainer, "evaluate", failing(Cut(), is_time, trainer.evaluate))
            on_epoch: Any = records.append
        else:
            on_epoch = failing(Cut(), is_time, records.append)
        with pytest.raises(Cut):
            start_in(planted, tmp_path, optimizer, on_epoch=on_epoch).fit()
    history = start_in(planted, tmp_path, optimizer, on_epoch=records.append).fit().history
    assert records == history
    assert_same_outcome(tmp_path, directory)


KILLED, FULL_DISK = Cut(), OSError(28, "No space left on device")
RENAMES = [(0, KILLED), (4, FULL_DISK), (5, KILLED), (6, KILLED)]
MORE_RENAMES = [(1, KILLED), (4, KILLED), (7, KILLED), (12, KILLED), (0, FULL_DISK), (6, FULL_DISK), (12, FULL_DISK)]


@pytest.mark.parametrize(
    ("number", "error"), [*RENAMES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_RENAMES)]
)
def test_cut_while_saving(
    whole: tuple[str, Path],
    planted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    number: int,
):
    """Renames of an epoch: four of the state inside it, one of the best weights, one of the state, one of the log."""
    optimizer, directory = whole
    with monkeypatch.context() as patch:
        is_time = (k == number for k in itertools.count())
        patch.setattr(Path, "replace", failing(error, is_time, Path.replace))
        with pytest.raises(InputError if isinstance(error, OSError) else Cut):
            start_in(planted, tmp_path, optimizer).fit()
    start_in(planted, tmp_path, optimizer).fit()
    assert_same_outcome(tmp_path, directory)
    assert not [path for path in tmp_path.rglob(".*") if path.suffix == ".tmp" and "safetensors" in path.name]


def test_a_run_that_ended_is_only_read(whole: tuple[str, Path], planted: Path, tmp_path: Path):
    optimizer, directory = whole
    training = start_in(planted, tmp_path, optimizer)
    training.fit()
    weights = {name: tensor.clone() for name, tensor in training.ranker.state_dict().items()}
    again = start_in(planted, tmp_path, optimizer)
    again.trainer.step = failing(Cut())  # type: ignore[method-assign]
    again.fit()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.ranker.state_dict().items())
    assert_same_outcome(tmp_path, directory)


def test_a_checkpoint_of_another_model_is_refused(planted: Path, tmp_path: Path):
    training_of(planted, tmp_path, epochs=1).fit()
    for changes in ({"embedding": {"num_rows": 65}}, {"model": "mlp"}, {"embedding": {"optimizer": "rowwise_adagrad"}}):
        with pytest.raises(InputError, match=r"state.safetensors: expected a checkpoint; found .*remove it"):
            training_of(planted, tmp_path, epochs=1, **changes).fit()


def test_a_damaged_checkpoint_stops_the_run(planted: Path, tmp_path: Path):
    training_of(planted, tmp_path, epochs=1).fit()
    state = tmp_path / "checkpoint" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"expected a checkpoint; found .*; remove it to start the run again"):
        training_of(planted, tmp_path, epochs=1).fit()
    state.unlink()
    records: list[Any] = []
    assert training_of(planted, tmp_path, epochs=1, on_epoch=records.append).fit().history == records
