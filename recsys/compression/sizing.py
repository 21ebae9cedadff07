"""The largest table that a byte budget admits.

M table rows, w row width.
"""

import math

from features.hashing import MAX_NUM_ROWS
from recsys.compression.base import Budget
from serving.bundle.table_plan import table_bytes

MAX_UNREAD = 1e-6
"""Expected rows without a lookup in training, above which the file is taken to need a bitmap."""


def most_rows(budget: Budget, width: int, num_lookups: int | None = None) -> int:
    """The largest M whose table file of M full rows fits a budget.

    `num_lookups` entries read all rows by hash; None if each feature has its own range, in which rows may be
    left over however many there are. Raises `InputError` if not even one row fits.
    """

    def fits(num_rows: int) -> bool:
        # If training may leave a row without a lookup, the file has a bitmap of those rows.
        has_unread = num_lookups is None or num_rows * math.exp(-num_lookups / num_rows) > MAX_UNREAD
        size = table_bytes(num_rows, width, budget.dtype, has_trained_rows=has_unread)
        return size <= budget.num_bytes

    if not fits(1):
        raise budget.too_few("a table of one row is larger", "raise --target-bytes, or choose a smaller --table-dtype")
    few, many = 1, 2
    while many <= MAX_NUM_ROWS and fits(many):
        few, many = many, 2 * many
    many = min(many, MAX_NUM_ROWS + 1)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if fits(middle) else (few, middle)
    return few
