"""The script that made `tests/golden/bundle`, once; making it again would defeat its purpose.

python tests/golden/make_bundle.py DIRECTORY
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from data.synthetic import planted_frame
from features.dataset.prepare import prepare
from features.registry import FeatureRegistry
from recsys.config import Experiment, with_overrides
from recsys.runs.evaluate import export_run
from recsys.runs.train import train_run

REGISTRY = FeatureRegistry.of(
    label="label",
    group="f02",
    seed=7,
    features={
        "f00": "categorical",
        "f01": {"type": "categorical", "probes": 2},
        "f02": {"type": "categorical", "key": "an older name"},
        "f03": "categorical",
        "l00": {"type": "categorical_list", "separator": "|"},
        "x00": "numeric",
        "x01": {"type": "numeric", "transform": "bucketize", "num_buckets": 4},
        "x02": {"type": "numeric", "transform": "log_square"},
        "x03": {"type": "numeric", "transform": "log1p"},
    },
)
EXPERIMENT = with_overrides(
    Experiment(name="golden", model={"name": "final_mlp"}),
    [
        *("embedding.num_rows=97", "embedding.probes=3", "trainer.epochs=3", "trainer.batch_size=256"),
        *("model.mlp1_hidden=[8]", "model.mlp2_hidden=[4]", "model.num_heads=2", "model.gate_hidden=[4]"),
        *("model.fs1_context=[f00, x00]", "model.fs2_context=[l00]"),
    ],
)


def make(out: Path) -> None:
    """Train a small model on planted data and export it."""
    with TemporaryDirectory() as directory:
        work = Path(directory)
        rows = planted_frame(4000, seed=11, num_features=4, num_distinct=30, num_numeric=4, num_lists=1)
        for name, part in (("train", rows.head(3000)), ("valid", rows.slice(3000, 500)), ("test", rows.tail(500))):
            part.write_parquet(work / f"{name}.parquet")
        files = {name: [work / f"{name}.parquet"] for name in ("train", "valid", "test")}
        prepare(REGISTRY, files, work / "dataset")
        train_run(EXPERIMENT, work / "dataset", work / "run", track=False)
        export_run(work / "run", out)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
