"""What `benchmarks.prepare` holds against each other: ways from raw rows to ids or tokens.

    python -m benchmarks.encoding '{"method": "muxrec prepare", "raw": "raw.parquet", "out": "folder"}'

Every job reads one parquet file of 26 text columns and writes ids or tokens as parquet, in a process of its own.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import polars as pl

from benchmarks.common import MEGABYTE, RAW, peak_mb, serve
from features.dataset.prepare import prepare
from features.hashing import token_of_text
from features.registry import FeatureRegistry

NAMES = RAW.categorical_names
MIN_COUNT = 1
"""Values seen less often get no id of their own."""


def with_muxrec(raw: Path, out: Path) -> None:
    """`prepare`, as the command calls it."""
    prepare(FeatureRegistry.of(features=RAW.features), {"train": [raw]}, out)


def with_polars(raw: Path, out: Path) -> None:
    """The floor: hash every column in a query that streams, and write it in one go."""
    out.mkdir()
    tokens = [token_of_text(pl.col(name)) for name in NAMES]
    query = pl.scan_parquet(raw).select(pl.col("label").cast(pl.UInt8), *tokens)
    query.sink_parquet(out / "all.parquet", compression="lz4", statistics=False)


def with_pandas(raw: Path, out: Path) -> None:
    """Ids in order of appearance, a column at a time."""
    import pandas as pd  # here, so that the others' memory is their own

    out.mkdir()
    frame = pd.read_parquet(raw, columns=["label", *NAMES])
    for name in NAMES:
        frame[name] = pd.factorize(frame[name])[0]
    frame.to_parquet(out / "all.parquet", compression="lz4", index=False)


def with_vocabulary(raw: Path, out: Path) -> None:
    """Ids by falling frequency from 1 on, 0 for padding and the last one for values that were not counted.

    What BARS' preprocessing does, in its own way of doing it: a counter and a dictionary a column.
    """
    out.mkdir()
    frame = pl.read_parquet(raw, columns=["label", *NAMES])
    columns = [frame["label"]]
    for name in NAMES:
        values = frame[name].to_list()
        counts = Counter(values)
        kept = sorted((value for value in counts if counts[value] >= MIN_COUNT), key=lambda value: -counts[value])
        ids = {value: number for number, value in enumerate(kept, start=1)}
        unseen = len(ids) + 1
        columns.append(pl.Series(name, [ids.get(value, unseen) for value in values], dtype=pl.Int32))
    pl.DataFrame(columns).write_parquet(out / "all.parquet", compression="lz4", statistics=False)


class Contender(NamedTuple):
    """One way, and what it needs imported before the clock starts."""

    run: Callable[[Path, Path], None]
    needs: tuple[str, ...] = ()


FLOOR, PEER = "floor: polars scans, hashes, writes", "vocabulary: a counter and a dictionary"
CONTENDERS = {
    FLOOR: Contender(with_polars),
    "muxrec prepare": Contender(with_muxrec),
    "pandas.factorize": Contender(with_pandas, ("pandas", "pyarrow.parquet")),
    PEER: Contender(with_vocabulary),
}


def work(method: str, raw: str, out: str) -> dict[str, float]:
    """One run; its seconds, its peak memory, and what it wrote."""
    contender = CONTENDERS[method]
    for module in contender.needs:
        import_module(module)
    began = time.perf_counter()
    contender.run(Path(raw), Path(out))
    seconds = time.perf_counter() - began
    written = sum(path.stat().st_size for path in Path(out).rglob("*.parquet"))
    return {"seconds": seconds, "peak_mb": peak_mb(), "written_mb": written / MEGABYTE}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    serve(lambda question: work(**job))
