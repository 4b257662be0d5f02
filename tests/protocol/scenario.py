"""What is explored, and what comes of it: scenarios, states and reports, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from protocol.programs import FINGERPRINT, Program, payload_of, reader, writer
from protocol.world import EMPTY, Cells

from sqlmodel_cache import MemoryTransport
from sqlmodel_cache._plan import Effect

LOST = "lost"  # in a list of replies: a TransportError was thrown into the plan
OVER = ("committed", "aborted")  # a transaction that the database has ended


@dataclass(frozen=True)
class Scenario:
    """Who runs, on what, and which faults may strike.

    Args:
        writers: their programs.
        readers: their programs.
        transport: the cache, or a mutant of it.
        warm: payload of the value that the cache may hold at the start, or None; it may also be empty.
        crashes: how many writers may crash, at any step.
        lost: how many commands may fail for the caller, and be executed at any later moment or never.
        evictions: how many keys may vanish.
        evicts_pending: whether a key with a live token may be among them.
        restores: whether an eviction is of all that has happened since some moment, and another server goes on from
            there: one that is started from an old snapshot, or a replica that is promoted and has missed the rest.
        waits: whether BEGIN is answered when the replica has it, too.
        deadlines: "sound" lapse only when their owner's transaction is over, "any" at any time, "none" never.
        refusals: whether the database may refuse a COMMIT, and the application may roll back.
        unknown: whether the connection may be lost during COMMIT.
        fills_own, fills_old: whether the session lets a SELECT fill that saw its own transaction's writes, or a
            snapshot from before the lease: the two rules that the session keeps for the protocol.
        row_exists: whether the row exists before the first commit.
        caches_missing: whether "no such row" is cached where it does not.
        fingerprints: those of the fresh readers.
        answers: whether the oracle looks at what readers are told, too, and not only at what the cache holds.
        together: whether the readers are in one process, and so join each other's loads.
        promise: the letters of the oracle that are checked.
    """

    writers: tuple[Program, ...] = (writer(),)
    readers: tuple[Program, ...] = (reader(),)
    transport: type[MemoryTransport] = MemoryTransport
    warm: bytes | None = payload_of(0)
    crashes: int = 0
    lost: int = 0
    evictions: int = 0
    evicts_pending: bool = False
    restores: bool = False
    waits: bool = False
    deadlines: str = "none"
    refusals: bool = False
    unknown: bool = False
    fills_own: bool = False
    fills_old: bool = False
    row_exists: bool = True
    caches_missing: bool = False
    fingerprints: tuple[bytes, ...] = (FINGERPRINT,)
    answers: bool = False
    together: bool = False
    promise: str = "abcdjp"


class Proc(NamedTuple):
    """A process: the replies that its program has received, and its database transaction."""

    program: int
    status: str = "on"  # on, done, owing (done, with a debt), dead
    replies: tuple[Any, ...] = ()
    txn: str = ""  # "", active, committing, committed, aborted, orphan
    version: int = 0  # what its commit made of the row
    flight: int = 0  # the number of the load that it leads, or minus that of the one that it has joined
    floor: int = -1  # the newest version whose commit() had returned when it began


class State(NamedTuple):
    """Everything that the future depends on."""

    cells: Cells
    current: int  # the committed version
    returned: int  # the newest version whose commit() has returned
    lock: int  # the writer that holds the row's lock, or -1
    procs: tuple[int, ...]  # numbers of `Proc`s, writers first
    late: tuple[int, ...]  # numbers of effects that may still be executed
    crashes: int
    lost: int
    evictions: int
    open: int = 0  # the load that may be joined
    wrong: str = ""  # what a reader was told that it must not be told
    copy: Cells = EMPTY  # what a snapshot or a replica has


class Position(NamedTuple):
    """Where a plan stands: its next effect, or its result."""

    effect: Effect[Any] | None
    result: Any
    owed: bool


Step: TypeAlias = tuple[str, State]
"""What happens, and the state after it."""


@dataclass
class Report:
    """What an exploration has found."""

    states: int = 0
    steps: int = 0
    schedules: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    traces: dict[str, list[str]] = field(default_factory=dict)  # letter of the oracle -> a shortest counterexample

    def told(self, letter: str) -> str:
        """Return a counterexample as numbered events."""
        return "\n".join(f"{number:3} {event}" for number, event in enumerate(self.traces[letter], 1))
