"""Which rows there are, and which of them are wanted: for processes with the library and for those without it."""

from __future__ import annotations

import random

ROWS = 200  # primary keys are 0 to ROWS - 1
BUCKET = 5  # rows that one bulk write changes: those with the same pk // BUCKET


def some_rows(count: int) -> list[int]:
    """Return at most that many primary keys, in order; some rows are wanted much more than others."""
    return sorted({int(ROWS * random.random() ** 2) for _ in range(count)})
