"""Whether cached rows are what the database holds: a comparison that no concurrent write turns into a false alarm.

Two values that were read one after the other may differ because a commit came in between. So a difference is only a
suspicion, and each suspect is looked at once more, in this order:

    1 lease  -> the versions of the row and of its table, nothing pending on either. It asks to replace a valid value,
                so that it is told the versions and changes nothing
    2 lookup -> the payload
    3 SELECT -> the row, in a snapshot that begins now: the session's side sees to that
    4 lease  -> the same two versions, or the look proves nothing

Versions are never used again, and BEGIN makes a new one (I2). The same ones in 1 and 4 say that no BEGIN of this row or
its table came between them, and the grant in 1 that no commit was in flight there. A COMMIT comes after its own BEGIN
and before its END (I1, I5), so none took effect between 1 and 4. Then the database held one state of the row all that
time, which is what 3 has read. And the payload of 2 is of a value under the versions of 1 (a look-up hits under no
other): it was loaded after a lease that named them (I3, I4), when nothing was pending and since when nobody has begun:
from that same state. So a payload that differs was never right under the protocol:

    1 V: lease   2 V: lookup, old row   3 W: BEGIN, COMMIT   4 V: SELECT, new row   5 V: lease: fenced, proves nothing
    1 V: lease   2 V: lookup, old row   3 W: BEGIN, COMMIT, END   4 V: SELECT, new   5 V: lease: another version

What differs nevertheless was written behind the protocol: by a program that nobody follows, through a COMMIT that
outlived its fence, or by one that the cache could not be told of - the exceptions of the promise, and its faults.
Where a follower is about to tell of a change, a get that begins now is stale, too, and so it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from ._effects import Entry, Granted, Lease, Loaded, LoadMany, Lookup, Together
from ._plan import Plan, perform
from ._protocol import NewId
from .errors import CodecError, TransportError

Difference = TypeVar("Difference")

LOOKS = 3  # at a suspect: a row that is written all the time is left undecided

UNSEEN: Any = object()
"""What a load gives for a row whose committed state it cannot tell, in the place of the row."""


class Verdict(Enum):
    """What a comparison has come to."""

    UNCACHED = "uncached"
    MATCHED = "matched"
    DIFFERS = "differs"
    UNDECIDED = "undecided"  # it was being written, or the cache or the database did not tell


@dataclass(frozen=True, slots=True)
class Compared(Generic[Difference]):
    """A verdict, with the difference where there is one."""

    verdict: Verdict
    difference: Difference | None = None


UNCACHED: Compared[Any] = Compared(Verdict.UNCACHED)
MATCHED: Compared[Any] = Compared(Verdict.MATCHED)
UNDECIDED: Compared[Any] = Compared(Verdict.UNDECIDED)

Compare = Callable[[bytes, Any], Difference | None]
"""Returns how a payload and a row differ, or None. Raises `CodecError` for a payload that no get would take."""


def verify(
    entries: Sequence[Entry], fingerprint: bytes, compare: Compare[Difference], *, new_id: NewId
) -> Plan[list[Compared[Difference]]]:
    """Return what comes of the rows at several entries, in this order: one round trip and one SELECT, if all match."""
    found: list[Compared[Difference]] = [UNCACHED] * len(entries)
    try:
        replies = yield from perform(Together(tuple(Lookup(entry, fingerprint) for entry in entries)))
    except TransportError:
        return [UNDECIDED] * len(entries)
    cached = [(at, reply) for at, reply in enumerate(replies) if isinstance(reply, bytes)]
    for at, reply in enumerate(replies):
        if isinstance(reply, TransportError):
            found[at] = UNDECIDED
    if not cached:
        return found
    loaded: Sequence[Loaded[Any]] = yield from perform(LoadMany(tuple(at for at, _ in cached), (False,) * len(cached)))
    for (at, payload), row in zip(cached, loaded, strict=True):
        found[at] = _compared(payload, row.row, compare)
        if found[at].verdict is Verdict.DIFFERS:
            found[at] = yield from look(entries[at], at, fingerprint, compare, new_id=new_id)
    return found


def look(
    entry: Entry, at: int, fingerprint: bytes, compare: Compare[Difference], *, new_id: NewId
) -> Plan[Compared[Difference]]:
    """Return what comes of one row, whose place among those that can be loaded is `at`."""
    found: Compared[Difference] = UNDECIDED
    for _ in range(LOOKS):
        try:
            before = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
            if not isinstance(before, Granted):
                continue
            payload = yield from perform(Lookup(entry, fingerprint))
        except TransportError:
            return UNDECIDED
        if payload is None:
            return UNCACHED
        loaded: Sequence[Loaded[Any]] = yield from perform(LoadMany((at,), (False,)))
        found = _compared(payload, loaded[0].row, compare)
        if found.verdict is not Verdict.DIFFERS:
            return found
        try:
            after = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
        except TransportError:
            return UNDECIDED
        if after == before:
            return found
    return UNDECIDED


def _compared(payload: bytes, row: Any, compare: Compare[Difference]) -> Compared[Difference]:
    if row is UNSEEN:
        return UNDECIDED
    try:
        difference = compare(payload, row)
    except CodecError:  # a get replaces it
        return UNCACHED
    return MATCHED if difference is None else Compared(Verdict.DIFFERS, difference)
