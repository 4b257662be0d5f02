"""What the follower needs of a database, whichever: PostgreSQL's stream, an outbox table, another server's log."""

from __future__ import annotations

import os
import selectors
import threading
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ._changes import Batch


class Interrupted(Exception):
    """A source was told to stop waiting."""


class SourceError(Exception):
    """The database did not answer, or not as it should: close the source and begin again."""


class Problem(NamedTuple):
    """What is wrong, and the exact remedy."""

    what: str
    remedy: str


SETUP = "run the setup: sqlmodel-cache follow --setup, or follow(setup=True)"


def shown_elsewhere(name: object, kind: str) -> Problem:
    """Return what is wrong with a view or the like in a cached table's place."""
    return Problem(
        f"{name} is a {kind}: what it shows changes elsewhere",
        "do not cache its model, or with a TTL that you can live with as the longest staleness",
    )


class Name(NamedTuple):
    """A table in its schema."""

    schema: str
    table: str

    def __str__(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.table)}"


class Wake:
    """Ends every wait, now and later, from any thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._lock = threading.Lock()  # guards `woken`
        self.woken = False

    def set(self) -> None:
        """End all waits."""
        with self._lock:
            if not self.woken:
                self.woken = True
                os.write(self._write, b"x")

    def wait(self, seconds: float, *others: int) -> bool:
        """Return whether one of the other file descriptors became readable in time; raises Interrupted."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._read, *others):
                selector.register(descriptor, selectors.EVENT_READ)
            ready = selector.select(max(0.0, seconds))
        if self.woken:
            raise Interrupted
        return bool(ready)

    def __del__(self) -> None:
        os.close(self._read)
        os.close(self._write)


@dataclass(frozen=True, slots=True)
class Health:
    """How far the database is ahead. `kept_bytes` is what it keeps for the follower, of its log or in a table."""

    kept_bytes: int = 0
    problems: tuple[Problem, ...] = ()
    started_over: int = 0


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


class Source(Protocol):
    """Where changes come from, in the order of their commits.

    All methods are called by one thread, but for `interrupt`. They raise `SourceError` for a database in trouble,
    after which `close` and `lead` begin anew with everything that was not confirmed, and `Interrupted`.
    """

    def setup_sql(self) -> list[str]:
        """Return the statements that are still needed before the database can be followed."""
        ...

    def setup(self) -> None:
        """Run them. Raises FollowerError with what they cannot mend."""
        ...

    def teardown_sql(self) -> list[str]:
        """Return the statements that leave nothing behind."""
        ...

    def teardown(self) -> None:
        """Run them."""
        ...

    def check(self) -> None:
        """Raise FollowerError when the database is not prepared, and cannot be followed as it is."""
        ...

    def lead(self) -> bool:
        """Become the one follower, if nobody else is. Raises FollowerError when the database is not prepared."""
        ...

    def watch(self) -> Batch | None:
        """Return what became stale without a row of it having been changed: schema, storage, a gap in the log."""
        ...

    def read(self, seconds: float) -> Batch | None:
        """Return what became stale and is visible to every reader that begins now; None if nothing did in time."""
        ...

    def confirm(self, batch: Batch) -> None:
        """Say that a batch has been invalidated: it will not come again."""
        ...

    def alive(self) -> None:
        """Say that this follower lives, while its cache does not answer. At least once a second."""
        ...

    def health(self) -> Health:
        """Return what was last seen; asks nothing."""
        ...

    def interrupt(self) -> None:
        """End a statement that waits in the database; from any thread, after the wake."""
        ...

    def close(self) -> None:
        """Let another follower lead."""
        ...
