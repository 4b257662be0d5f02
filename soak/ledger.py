"""What is known, across processes, of every version: the judge of every read.

A version is a number from one sequence of the database. It is drawn under a lock on its row, so that a row's versions
only grow. A writer notes in shared memory what it is about to do, before it does it, and what has been done, after:

    DRAFT      drawn, maybe flushed; COMMIT has not been sent     whoever reads it reads uncommitted data
    SENT       COMMIT may have been sent, maybe has taken effect  may be read, and whether it was committed: the journal
    RETURNED   commit() has returned                              no get that begins from now on reads less
    UNDONE     rolled back, as a whole or to a savepoint          whoever reads it reads uncommitted data

Every lane (a thread or a task) has slots of its own and nobody writes another's, so that there is no lock that a killed
process could leave locked. A store of a machine word is atomic.

Outsiders write without the library. What they have committed is owed to a get only when the follower has confirmed it,
which is noted here by the one who watches the follower.
"""

from __future__ import annotations

import time
from ctypes import c_double, c_int64
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext
from typing import Any

from soak.rows import ROWS

DRAFT, SENT, RETURNED, UNDONE = 1, 2, 3, 4

MAX_VERSIONS = 8_000_000


class Ledger:
    """The shared memory. It is made once and inherited by every process."""

    def __init__(self, context: SpawnContext, lanes: int, outside_lanes: int = 0) -> None:
        self.lanes = lanes  # of readers and writers with the library; those of outsiders come after them
        lanes += outside_lanes
        self.state: Any = context.RawArray("b", MAX_VERSIONS)
        self.returned_at: Any = context.RawArray(c_double, MAX_VERSIONS)  # seconds of CLOCK_MONOTONIC, or 0
        self._committed: Any = context.RawArray(c_int64, lanes * ROWS)  # the last version that returned, by lane
        self._deleting: Any = context.RawArray(c_int64, lanes * ROWS)  # the last deletion that was sent, by lane
        self._seen: Any = context.RawArray(c_int64, lanes * ROWS)  # the last version that a get has returned, by lane
        self._outside: Any = context.RawArray("b", MAX_VERSIONS)  # whether an outsider has drawn it
        self._seen_outside: Any = context.RawArray(c_int64, lanes * ROWS)  # as `_seen`, of outsiders' versions
        self._owed: Any = context.RawArray(c_int64, ROWS)  # the last version of an outsider that is owed
        self.lost_at: Any = context.RawValue(c_double, 0.0)  # when the cache last lost something, for good
        self.stop: Any = context.RawValue("b", 0)

    def committed(self, pk: int) -> int:
        """Return the last version of a row that is owed: whose commit() has returned, or that has been followed."""
        return max(*self._committed[pk : self.lanes * ROWS : ROWS], self._owed[pk])

    def committed_outside(self, pk: int) -> int:
        """Return the last version of a row that an outsider's COMMIT has returned for."""
        return max(self._committed[self.lanes * ROWS + pk :: ROWS], default=0)

    def owe(self, versions: list[int]) -> None:
        """Note that outsiders' versions, by row, are owed from now on. One thread alone may say so."""
        self._owed[:] = versions

    def seen(self, pk: int) -> int:
        """Return the last version of a row that any get has returned, and that was not an outsider's.

        An outsider's may be read from the database by one, while it is not yet invalidated for another.
        """
        return max(self._seen[pk::ROWS])

    def seen_by(self, lane: int, pk: int) -> tuple[int, int]:
        """Return the last version of a row that a get of that lane has returned, and the last of an outsider."""
        return self._seen[lane * ROWS + pk], self._seen_outside[lane * ROWS + pk]

    def deleted_since(self, pk: int, version: int) -> bool:
        """Return whether a deletion that is not older than `version` may have taken effect."""
        return max(self._deleting[pk::ROWS]) >= max(version, 1)

    def note_seen(self, lane: int, pk: int, version: int) -> None:
        """Note what a get has returned."""
        seen = self._seen_outside if self._outside[version] else self._seen
        at = lane * ROWS + pk
        if version > seen[at]:
            seen[at] = version

    def note_drawn(self, lane: int, version: int) -> None:
        """Note who has drawn a version, before anybody can read it."""
        self.state[version] = DRAFT
        self._outside[version] = lane >= self.lanes

    def transaction(self, lane: int) -> Writing:
        """Return the account of a transaction that begins."""
        return Writing(self, lane)


@dataclass
class Writing:
    """One transaction's versions, in the order in which they were drawn."""

    ledger: Ledger
    lane: int
    versions: list[tuple[int, list[int], bool]] = field(default_factory=list)  # version, rows, whether they go
    touched: set[int] = field(default_factory=set)  # rows, those of undone versions too

    def draft(self, version: int, pks: list[int], *, deleted: bool = False) -> None:
        """Note a write that is about to be flushed."""
        self.ledger.note_drawn(self.lane, version)
        self.versions.append((version, pks, deleted))
        self.touched.update(pks)

    def undo(self, keep: int = 0) -> None:
        """Note that all writes but the first `keep` will never be committed."""
        for version, _, _ in self.versions[keep:]:
            self.ledger.state[version] = UNDONE
        del self.versions[keep:]

    def sent(self) -> None:
        """Note that COMMIT is about to be sent."""
        for version, pks, deleted in self.versions:
            for pk in pks if deleted else ():
                self.ledger._deleting[self.lane * ROWS + pk] = version
            self.ledger.state[version] = SENT

    def returned(self) -> None:
        """Note that commit() has returned."""
        now = time.monotonic()
        for version, pks, _ in self.versions:
            self.ledger.returned_at[version] = now
            self.ledger.state[version] = RETURNED
            for pk in pks:
                self.ledger._committed[self.lane * ROWS + pk] = version


@dataclass(frozen=True)
class Finding:
    """A read that should not have been: judged where it happened, measured from the journal afterwards."""

    kind: str
    pk: int
    version: int | None
    floor: int
    at: float  # seconds of CLOCK_MONOTONIC when the get began


STALE, PHANTOM, TORN, MISSING, BACKWARDS = "stale", "phantom", "torn", "missing", "backwards"
LATE = "late"  # older than an outsider's commit that is not owed yet: no fault
EXEMPT_SECONDS = 4.0  # after the cache lost keys, commits in flight then may be seen by one get and not by the next


def judge(ledger: Ledger, lane: int, pk: int, floor: int, seen: int, at: float, row: Any) -> Finding | None:
    """Return what is wrong with a get's result, given what was `committed` and `seen` before it began."""
    if row is None:
        missing = not ledger.deleted_since(pk, floor)
        return Finding(MISSING, pk, None, floor, at) if missing else None
    version: int = row.version
    if row.note != str(version):
        return Finding(TORN, pk, version, floor, at)
    if version and ledger.state[version] not in (SENT, RETURNED):
        return Finding(PHANTOM, pk, version, floor, at)
    if version < floor:
        return Finding(STALE, pk, version, floor, at)
    if version < seen and at - ledger.lost_at.value > EXEMPT_SECONDS:
        return Finding(BACKWARDS, pk, version, seen, at)
    ledger.note_seen(lane, pk, version)
    return None
