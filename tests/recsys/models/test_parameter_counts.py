"""A1: the networks have exactly as many parameters as the published runs, from the sizes of the fields alone.

Every total is from a log of reczoo/BARS.
"""

from typing import Any

import pytest

from recsys.models import MODELS
from tests.published import (
    AVAZU_X1,
    AVAZU_X4,
    CRITEO_X1,
    CRITEO_X4,
    FRAPPE_X1,
    MOVIELENS_X1,
    NUMBERS,
    OLD_FRAPPE_X1,
    Fields,
    parameters_there,
)


def check(name: str, settings: dict[str, Any], fields: Fields, published: int) -> None:
    """The model has the published number of parameters."""
    assert parameters_there(name, MODELS[name].Config.model_validate(settings), fields) == published


def streams(mlp1: list[int], mlp2: list[int], heads: int, **more: Any) -> dict[str, Any]:
    """Settings of FinalMLP."""
    return {"mlp1_hidden": mlp1, "mlp2_hidden": mlp2, "num_heads": heads, **more}


FINAL_MLP = {
    "Criteo_x1": (
        streams([400] * 3, [1000], 200, gate_hidden=[800], fs1_context=NUMBERS, fs2_context=["C6"]),
        CRITEO_X1, 22_478_162,
    ),
    "Avazu_x1": (streams([400] * 3, [800], 10, gate_hidden=[800]), AVAZU_X1, 13_979_472),
    "MovielensLatest_x1": (streams([400], [800], 10, gate_hidden=[800]), MOVIELENS_X1, 1_040_902),
    "Frappe_x1": (
        streams([400], [100], 5, gate_hidden=[400], fs1_context=["user"], fs2_context=["item"]), FRAPPE_X1, 253_392,
    ),
    "Criteo_x4_001": (
        streams([1000] * 5, [500], 50, use_gates=False, mlp1_batch_norm=False, mlp2_batch_norm=False),
        CRITEO_X4, 19_524_954,
    ),
    "Avazu_x4_001": (
        streams([2000] * 3, [500], 20, use_gates=False, mlp2_batch_norm=False), AVAZU_X4, 69_046_986,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "fields", "published"), FINAL_MLP.values(), ids=FINAL_MLP)
def test_final_mlp(settings: dict[str, Any], fields: Fields, published: int):  # A1
    check("final_mlp", settings, fields, published)


FINAL_NET = {
    "Criteo_x1": ([400, 400], [400, 400], CRITEO_X1, 21_658_582),
    "Avazu_x1": ([800], [800, 800], AVAZU_X1, 14_163_518),
    "MovielensLatest_x1": ([400, 400], [500], MOVIELENS_X1, 1_106_234),
    "Frappe_x1": ([400, 400], [400], FRAPPE_X1, 338_502),
}


@pytest.mark.parametrize(("block1", "block2", "fields", "published"), FINAL_NET.values(), ids=FINAL_NET)
def test_final_net_of_two_blocks(block1: list[int], block2: list[int], fields: Fields, published: int):
    check("final_net", {"block1_hidden": block1, "block2_hidden": block2}, fields, published)


@pytest.mark.parametrize(
    ("name", "settings", "published"),
    [
        ("dcn_v2", {"num_cross_layers": 4, "hidden": [400, 400, 400]}, 458_391),
        ("deep_fm", {"hidden": [400, 400, 400]}, 423_280),
        ("fm", {}, 59_280),
    ],
)
def test_the_others_on_frappe_x1(name: str, settings: dict[str, Any], published: int):
    check(name, settings, OLD_FRAPPE_X1, published)
