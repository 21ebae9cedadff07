"""Hypothesis's floats, also on processors that flush subnormal numbers to zero, which Hypothesis refuses."""

from typing import Any

from hypothesis import strategies as st


def floats(*bounds: float, **options: Any) -> st.SearchStrategy[float]:
    """`st.floats`, without subnormal numbers if the processor has none."""
    is_flushed = float("5e-324") * 1.0 == 0
    return st.floats(*bounds, **options, **({"allow_subnormal": False} if is_flushed else {}))
