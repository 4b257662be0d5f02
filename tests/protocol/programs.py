"""What the processes of a scenario do: readers and writers made of the project's own plans, whole or mutated.

A program is a generator of effects. `Update`, `Abort` and `Snapshot` are the database's, and exist in tests only; all
others are the project's. One row is in play, and its table's shard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlmodel_cache import InvalidationError, TransportError, _protocol, _searches, _verify
from sqlmodel_cache._effects import ABSENT, Commit, Entry, Keys, Lease, Load, Outcome
from sqlmodel_cache._plan import Effect, Plan, perform
from sqlmodel_cache._protocol import Reading
from sqlmodel_cache._searches import Finding
from sqlmodel_cache.errors import CodecError

ENTRY = Entry("c:{db/hero:0}:1", "c:{db/hero:0}")
HINT = Entry("c:{db/hero:1}:/key", "c:{db/hero:1}")
HINTED = b"the row"  # what a hint says; it may say so at any time, and it may say nothing
ROW = Keys((ENTRY.row,), ())
ANOTHER_ROW = Keys(("c:{db/hero:0}:2",), ())
TABLE = Keys((), (ENTRY.table,))
NOTHING = Keys((), ())

FINGERPRINT, OTHER_RELEASE = b"release1", b"release2"
CORRUPT = b"not a row"
TTL_MS = 300_000
FENCE_TTL_MS = 60_000


@dataclass(frozen=True, slots=True)
class Update(Effect[None]):
    """Send a writing statement; `touches` says whether it writes the row, and takes its lock."""

    touches: bool = True


@dataclass(frozen=True, slots=True)
class Abort(Effect[None]):
    """Send the database's ROLLBACK."""


@dataclass(frozen=True, slots=True)
class Snapshot(Effect[int]):
    """Begin a REPEATABLE READ transaction: every later SELECT of the process sees what is committed now."""


@dataclass
class Debts:
    """Whether a process owes an invalidation."""

    owed: bool = False

    def owe(self, keys: Keys) -> None:
        """Remember keys."""
        self.owed = True

    def ticket(self) -> int:
        """Return nothing of use: a process of the model does one thing at a time."""
        return 0

    def settle(self, keys: Keys, ticket: int) -> None:
        """Forget keys."""
        self.owed = False


@dataclass
class Process:
    """What a program is given: ids that are never the same twice, and a place for its debts."""

    name: str
    debts: Debts = field(default_factory=Debts)
    ids: int = 0

    def new_id(self) -> bytes:
        """Return 16 bytes that begin with the process's name, so that the world knows whose token it sees."""
        self.ids += 1
        return f"{self.name}.{self.ids}".encode().ljust(16, b".")

    def same_id(self) -> bytes:
        """Return the same 16 bytes always: a broken `new_id`."""
        return self.name.encode().ljust(16, b".")


Program = Callable[[Process], Plan[Any]]
CommitPlan = Callable[..., Plan[Outcome]]


def payload_of(version: int) -> bytes:
    """Return the payload of the row as the n-th commit left it; below zero is a value that nobody committed."""
    return str(version).encode()


def decode(payload: bytes) -> int:
    """Return the version that a payload holds; the row does not exist in version 0."""
    if payload == ABSENT:
        return 0
    if payload == CORRUPT:
        raise CodecError("corrupt")
    return int(payload)


def reader(
    read: Callable[..., Plan[Any]] = _protocol.read, fingerprint: bytes = FINGERPRINT, **options: Any
) -> Program:
    """Return a program that gets the row in READ COMMITTED."""
    reading = Reading(fingerprint, decode, TTL_MS, TTL_MS, **options)
    return lambda process: read(ENTRY, reading, new_id=process.new_id)


WAIT_MS = 2  # time for one poll


def waiting_reader(read: Callable[..., Plan[Any]] = _protocol.read) -> Program:
    """Return a program that gets the row, and waits for who is about to load it: here, or elsewhere."""
    return reader(read, wait_ms=WAIT_MS)


def renewing_reader(renew: Callable[..., Plan[Any]] = _protocol.read) -> Program:
    """Return a program that gets the row, and renews each value that it hits."""
    return reader(renew, due=lambda payload: True)


def reader_of_many(read_many: Callable[..., Plan[Any]] = _searches.read_many) -> Program:
    """Return a program that gets the row as one of many."""
    return reader(lambda entry, reading, new_id: read_many([entry], reading, new_id=new_id))


def finder(find: Callable[..., Plan[Any]] = _searches.find, matches: Callable[[int], bool] | None = None) -> Program:
    """Return a program that gets the row by a unique key, which every other commit takes from it and gives back."""
    hint = Reading(FINGERPRINT, bytes, TTL_MS)
    row = Reading(FINGERPRINT, decode, TTL_MS)
    finding = Finding(HINT, hint, lambda _: (ENTRY, row), matches or has_key)
    return lambda process: find(finding, new_id=process.new_id)


def has_key(version: int) -> bool:
    """Return whether the row has the unique key as the n-th commit left it."""
    return version % 2 == 0


def verifier(look: Callable[..., Plan[Any]] | None = None) -> Program:
    """Return a program that compares the cached row with the database; or takes the one look of a mutant at it."""

    def compare(payload: bytes, row: int) -> tuple[int, int] | None:
        cached = decode(payload)
        return None if cached == row else (cached, row)

    def program(process: Process) -> Plan[Any]:
        if look is not None:
            return [(yield from look(ENTRY, 0, FINGERPRINT, compare, new_id=process.new_id))]
        return (yield from _verify.verify([ENTRY], FINGERPRINT, compare, new_id=process.new_id))

    return program


def unfenced_writer() -> Program:
    """Return a program that the cache hears nothing of: SQL that nobody follows."""
    return writer(NOTHING, commit=bare_commit)


def snapshot_reader() -> Program:
    """Return a program that gets the row in a REPEATABLE READ transaction that has begun before."""

    def program(process: Process) -> Plan[Any]:
        yield from perform(Snapshot())
        return (yield from reader()(process))

    return program


def remembering_reader() -> Program:
    """Return the same program in a process that has seen a lease on the row before the transaction began."""

    def program(process: Process) -> Plan[Any]:
        with suppress(TransportError):
            yield from perform(Lease(ENTRY, FINGERPRINT, process.new_id()))
        return (yield from snapshot_reader()(process))

    return program


def writer(
    keys: Keys = ROW,
    *,
    new: Keys = NOTHING,
    touches: bool = True,
    refuse: bool = True,
    commit: CommitPlan = _protocol.commit,
    before: Program | None = None,
    retries: int = 0,
    same_id: bool = False,
) -> Program:
    """Return a program that writes and commits.

    Args:
        keys: its write set.
        new: rows that it inserts.
        touches: whether the row is among what it writes.
        refuse: as in the plan: whether a commit that cannot be fenced is refused.
        commit: the plan, or a mutant of it.
        before: what it does between its UPDATE and its COMMIT.
        retries: how often it tries the transaction again that the database has refused.
        same_id: whether it uses one token for everything.
    """

    def program(process: Process) -> Plan[Any]:
        new_id = process.same_id if same_id else process.new_id
        send = partial(commit, new=new) if new else commit
        for _ in range(1 + retries):
            yield from perform(Update(touches))
            if before is not None:
                yield from before(process)
            try:
                outcome = yield from send(keys, process.debts, refuse=refuse, fence_ttl_ms=FENCE_TTL_MS, new_id=new_id)
            except InvalidationError:
                yield from perform(Abort())
                return Outcome.FAILED
            if outcome is not Outcome.FAILED:
                break
        if process.debts.owed:
            owed = keys.including(new)
            yield from _protocol.settle(owed, process.debts, fence_ttl_ms=FENCE_TTL_MS, new_id=new_id)
        return outcome

    return program


def keeper(keys: Keys = ROW, attempts: int = 2) -> Program:
    """Return what a process does, after an outage, that owes keys since before the scenario began."""

    def program(process: Process) -> Plan[bool]:
        process.debts.owe(keys)
        for _ in range(attempts):
            if (yield from _protocol.settle(keys, process.debts, fence_ttl_ms=FENCE_TTL_MS, new_id=process.new_id)):
                return True
        return False

    return program


def own_load(process: Process) -> Plan[None]:
    """A transaction's read of a row that it wrote, as the session does it: the cache is not asked."""
    yield from perform(Load())


def bare_commit(*_: Any, **__: Any) -> Plan[Outcome]:
    """A commit that tells the cache nothing."""
    return (yield from perform(Commit()))
