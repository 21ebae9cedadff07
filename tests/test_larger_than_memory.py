"""The benchmark on more data than memory: its stages follow one another, and its limit holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.larger_than_memory import STAGES, main, measure
from features.errors import InputError

NUM_ROWS = 3000
ALLOCATE = """
import numpy
from benchmarks.larger_than_memory import limit_memory

held = numpy.ones(100 << 20, dtype=numpy.uint8)
limit_memory({})
numpy.ones(100 << 20, dtype=numpy.uint8)
"""


@pytest.mark.slow
def test_stages_follow_one_another(tmp_path: Path):
    done = measure(tmp_path, NUM_ROWS, limit_mb=4000, window_mb=1)
    assert list(done) == list(STAGES)
    assert done["prepare"]["rows"] == NUM_ROWS
    # In windows or all at once, every training row is read once; 1% of the rows each are held out twice.
    assert 0.96 * NUM_ROWS < done["train"]["rows"] == done["control"]["rows"] < NUM_ROWS
    assert all(figures["peak_mb"] > 0 and figures["seconds"] > 0 for figures in done.values())


@pytest.mark.slow
@pytest.mark.parametrize(("limit_mb", "is_enough"), [(200, False), (400, True)])
def test_the_limit_counts_what_a_process_holds(limit_mb: int, is_enough: bool):
    """Two arrays of 100 MB, one of them there before, plus some 40 MB of the interpreter and the libraries."""
    command = [sys.executable, "-c", ALLOCATE.format(limit_mb)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (done.returncode == 0) == is_enough
    assert is_enough or "MemoryError" in done.stderr


def test_data_that_fit_are_refused():
    with pytest.raises(InputError, match=r"expected data above 2,500 MB; found 206 MB; raise --rows or lower"):
        main(rows="1e6")
