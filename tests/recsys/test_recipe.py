"""The settings of final_mlp that follow the size of the data: which data they are for, and what they are worth."""

from pathlib import Path

import pytest

from features.dataset.info import DatasetInfo, SplitInfo
from features.registry import FeatureRegistry
from recsys.api import resolve_experiment
from recsys.config import default_run, variant
from recsys.models import MODELS
from recsys.recipe import FEW_EXAMPLES, for_data

TOKENS = FeatureRegistry.of(features={"user": "categorical", "price": "numeric"})
NUMBERS = FeatureRegistry.of(features={"price": "numeric"})


def info_of(rows: int, label_rate: float) -> DatasetInfo:
    """A dataset of this size."""
    train = SplitInfo(rows=rows, label_rate=label_rate, missing_rates={}, parts=())
    return DatasetInfo(name="planted", registry_fingerprint="", splits={"train": train})


@pytest.mark.parametrize(
    ("rows", "label_rate", "is_small"),
    [
        (1_000, 0.5, True),
        (2 * FEW_EXAMPLES - 2, 0.5, True),
        (2 * FEW_EXAMPLES, 0.5, False),
        (1_000_000, 0.0025, True),
        (1_000_000, 0.9975, True),  # the rarer label is what there is little of
        (1_000_000, 0.02, False),
    ],
)
def test_few_examples_of_the_rarer_label_make_a_dataset_small(rows: int, label_rate: float, is_small: bool):
    adapted = for_data(default_run("final_mlp"), info_of(rows, label_rate), TOKENS)
    assert adapted.target_statistics == is_small
    assert adapted.model.model_dump()["mlp1_batch_norm"] != is_small
    assert adapted.trainer.schedule == "cosine"


@pytest.mark.parametrize(("rows", "epochs"), [(100_000, 12), (1_000_000, 10), (5_000_000, 2), (10**9, 2)])
def test_larger_data_are_passed_over_fewer_times(rows: int, epochs: int):
    assert for_data(default_run("final_mlp"), info_of(rows, 0.3), TOKENS).trainer.epochs == epochs


@pytest.mark.parametrize(
    ("rows", "rate", "l2"),
    [(100_000, 0.003, 0.05), (200_000, 0.003, 0.05), (400_000, 0.0015, 0.025), (10**7, 0.001, 0.005)],
)
def test_larger_data_need_less_decay(rows: int, rate: float, l2: float):
    found = for_data(default_run("final_mlp"), info_of(rows, 0.3), TOKENS)
    assert (found.trainer.learning_rate, found.embedding.l2) == pytest.approx((rate, l2))


def test_numbers_alone_have_no_statistics_and_more_epochs():
    numbers, tokens = (for_data(default_run("final_mlp"), info_of(1_000, 0.3), one) for one in (NUMBERS, TOKENS))
    assert (numbers.target_statistics, tokens.target_statistics) == (False, True)
    assert (numbers.trainer.epochs, tokens.trainer.epochs) == (10, 5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "final_mlp"])
def test_other_models_keep_their_settings(name: str):
    assert for_data(default_run(name), info_of(1_000, 0.3), TOKENS) == default_run(name)


def test_a_run_of_ones_own_keeps_its_settings():
    own = variant(default_run("final_mlp"), "final_mlp", trainer={"epochs": 7})
    assert for_data(own, info_of(1_000, 0.3), TOKENS) == own


def test_settings_that_are_given_win():
    settings = {"trainer.epochs": 7, "target_statistics": False, "model": {"mlp1_batch_norm": True}}
    found = resolve_experiment("final_mlp", settings, (info_of(1_000, 0.3), TOKENS))
    assert (found.trainer.epochs, found.trainer.schedule, found.target_statistics) == (7, "cosine", False)
    assert found.model.model_dump()["mlp1_batch_norm"]


def test_the_command_writes_them_down(dataset: Path, muxrec, tmp_path: Path):
    arguments = ("--data", dataset, "--out", tmp_path / "run", "--no-track", "--no-report", "--json")
    assert muxrec("train", "final_mlp", *arguments, "model.mlp1_hidden=[20]", "trainer.epochs=1").code == 0
    text = (tmp_path / "run" / "experiment.yaml").read_text(encoding="utf-8")
    assert "schedule: cosine" in text
    assert "target_statistics: true" in text
