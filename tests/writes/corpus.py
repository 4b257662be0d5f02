"""The corpus: every way in which a program writes, as data. What is missing here is missing in the promise."""

from __future__ import annotations

from writes import cascade_writes, core_writes, orm_writes, text_writes
from writes.entry import Entry

ENTRIES: list[Entry] = [
    *orm_writes.ENTRIES,
    *core_writes.ENTRIES,
    *text_writes.ENTRIES,
    *cascade_writes.ENTRIES,
]
