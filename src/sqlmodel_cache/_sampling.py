"""Which primary keys are looked at, when all would be too many: a sample of a table in which each is as likely.

    one integer column, and a quarter of the numbers between the least and the greatest are rows
        numbers between the two are drawn. The table is asked for both ends, and for how many of a thousand are rows;
        a row that the database has deleted behind the cache is as likely to be drawn as any other
    any other key
        ORDER BY random() LIMIT n: one pass over the primary key's index, and memory for n keys in the database

To jump to the next key after a random one would cost less than the pass, but favours rows after gaps: those whose
neighbours were deleted. TABLESAMPLE takes whole pages, of rows that were written together, and few databases have it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Integer, func, select
from sqlalchemy.orm import Mapper, Session

PROBE = 1_000  # numbers whose rows are counted: the density is known to three hundredths
DENSE = 0.25  # of the numbers; below, most look-ups would be in vain


def sample_keys(session: Session, mapper: Mapper[Any], size: int) -> Sequence[tuple[Any, ...]]:
    """Return primary keys of about `size` rows, at random, none twice; all, where there are no more."""
    columns = mapper.primary_key
    if len(columns) == 1 and isinstance(columns[0].type, Integer):
        numbers = _numbers(session, columns[0], size)
        if numbers is not None:
            return [(number,) for number in numbers]
    keys = session.execute(select(*columns).order_by(func.random()).limit(size))
    return [tuple(key) for key in keys]


def _numbers(session: Session, column: Any, size: int) -> list[int] | None:
    """Return numbers among which there are about `size` rows, or None where too few numbers are rows."""
    low, high = session.execute(select(func.min(column), func.max(column))).one()
    if low is None:
        return []
    if type(low) is not int or type(high) is not int:
        return None
    numbers = range(low, high + 1)
    probe = random.sample(numbers, min(len(numbers), PROBE))
    rows = session.execute(select(func.count()).where(column.in_(probe))).scalar_one()
    density = rows / len(probe)
    if density < DENSE and len(numbers) > size:
        return None
    return random.sample(numbers, min(len(numbers), math.ceil(size / max(density, DENSE))))
