"""PostgreSQL as a source: a logical replication slot, read through the streaming replication protocol.

Two connections. One replicates, and holds the advisory lock that makes this follower the only one: both end at the
same moment, whatever ends them. The other asks the catalog.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import pq

from ..errors import FollowerError
from . import _catalog
from ._catalog import State
from ._changes import Batch, Changes, Stale
from ._connect import SENDER_TIMEOUT, connect, connect_replication
from ._pgoutput import DecodeError, Keepalive, decode, status, unframe
from ._source import Health, Interrupted, SourceError, Wake, quoted
from ._watch import Watch, impatient, parents

BATCH_ROWS = 1000  # after which no more transactions join a batch
ALIVE_SECONDS = 0.5  # between signs of life
WATCH_SECONDS = 1.0  # between two looks at the catalog
SILENCE_SECONDS = 10.0  # of the server, after which its connection counts as cut
VISIBLE_SECONDS = 0.002  # between two looks at whether a commit is visible

_UNDEFINED_OBJECT = b"42704"


class _SlotUnusable(Exception):
    """The slot has lost changes, or keeps too much: begin with a new one."""


class Stream:
    """Follows one database through the publication and the slot that are named `name`.

    Args:
        where: the connect string, as libpq reads it.
        name: of the publication and the slot.
        stale: names what is stale.
        wake: ends all waiting.
        max_slot_bytes: the slot is dropped and made anew when the server keeps more than that for it.
    """

    def __init__(self, where: str, name: str, stale: Stale, wake: Wake, *, max_slot_bytes: int | None = None) -> None:
        self._where = where
        self._name = name
        self._stale = stale
        self._wake = wake
        self._max_slot_bytes = max_slot_bytes
        self._discard = False  # whether the slot is to be made anew, whatever it looks like
        self._sql: psycopg.Connection[Any] | None = None
        self._replication: pq.abc.PGconn | None = None
        self._reset()
        self._health = Health()
        self._history = ""  # which course of commits the server is on

    def _reset(self) -> None:
        self._changes = Changes(self._stale)
        self._confirmed = 0  # the position that the server may forget everything before
        self._said = 0.0  # seconds of time.monotonic(): when the server was last told so
        self._heard = 0.0  # and when it last said anything
        self._looked = 0.0  # and when the slot was last looked at
        self._watch = Watch(self._name, self._stale)

    # setup

    def setup_sql(self) -> list[str]:
        """Return the statements that are still needed before the database can be followed."""
        with self._trouble(), connect(self._where) as connection:
            return _catalog.setup_sql(self._look(connection), self._name)

    def setup(self) -> None:
        """Run them. Raises FollowerError with what they cannot mend."""
        with self._trouble(), connect(self._where) as connection:
            state = self._look(connection)
            problems = list(_catalog.problems(state))
            if problems:
                raise FollowerError(*problems)
            for statement in _catalog.setup_sql(state, self._name):
                connection.execute(statement.encode())

    def teardown_sql(self) -> list[str]:
        """Return the statements that leave nothing behind."""
        with self._trouble(), connect(self._where) as connection:
            return _catalog.teardown_sql(self._look(connection), self._name)

    def teardown(self) -> None:
        """Run them."""
        with self._trouble(), connect(self._where) as connection:
            for statement in _catalog.teardown_sql(self._look(connection), self._name):
                self._insist(connection, statement)

    def _insist(self, connection: psycopg.Connection[Any], statement: str) -> None:
        """Execute a statement; what a follower that has just ended still holds is waited for."""
        until = time.monotonic() + SENDER_TIMEOUT
        while True:
            try:
                connection.execute(statement.encode())
                return
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    # leading

    def check(self) -> None:
        """Raise FollowerError when the database is not prepared, and cannot be followed as it is."""
        with self._trouble(), connect(self._where) as connection:
            self._refuse(self._look(connection))

    def _refuse(self, state: State) -> None:
        problems = [*_catalog.problems(state), *_catalog.missing(state)]
        if problems:
            raise FollowerError(*problems)

    def lead(self) -> bool:
        """Become the one follower, if nobody else is. Raises FollowerError when the database is not prepared."""
        with self._trouble():
            if self._sql is None:
                self._sql = connect(self._where)
            if self._replication is None:
                self._replication = connect_replication(self._where)
            if not self._locked():
                return False
            self._history = self._identify()
            state = self._look(self._sql)
            self._refuse(state)
            if self._discard or state.slot is None or self._unusable(state.slot):
                self._start_over()
            return self._start()

    def _locked(self) -> bool:
        key = int.from_bytes(hashlib.blake2b(self._name.encode(), digest_size=8).digest(), signed=True)
        result = self._command(f"SELECT pg_try_advisory_lock({key})")
        return result.get_value(0, 0) == b"t"

    def _identify(self) -> str:
        """Return the server's identity and timeline: promoted, it may lack commits that its predecessor had."""
        result = self._command("IDENTIFY_SYSTEM")
        return " ".join((result.get_value(0, place) or b"").decode() for place in (0, 1))

    def _start(self) -> bool:
        publications = _catalog.literal(quoted(self._name))
        try:
            self._command(
                f"START_REPLICATION SLOT {quoted(self._name)} LOGICAL 0/0 "
                f"(proto_version '1', publication_names {publications})"
            )
        except SourceError as error:
            if "is active for PID" in str(error):  # whoever led before is not quite gone
                return False
            raise
        self._heard = time.monotonic()
        return True

    def _start_over(self) -> None:
        """Make a new slot. What the old one has missed is not known: all is stale, until a comment says otherwise.

        1 the slot is made anew   2 this follower is killed   3 another leads, and finds a slot in order
        So the publication's comment goes first, and what it does not vouch for is invalidated by `watch`.
        """
        assert self._sql is not None  # noqa: S101  lead() has opened it
        state = self._look(self._sql)
        if state.publication is not None and state.publication.mine:
            self._sql.execute(_catalog.comment_sql(self._name, _catalog.STARTING).encode())
        if state.slot is not None:
            self._sql.execute(_catalog.drop_slot_sql(self._name).encode())
        self._sql.execute(_catalog.create_slot_sql(self._name).encode())
        self._discard = False
        self._health = Health(0, self._health.problems, self._health.started_over + 1)

    def _unusable(self, slot: _catalog.Slot) -> bool:
        return not slot.usable or (self._max_slot_bytes is not None and slot.kept_bytes > self._max_slot_bytes)

    # what no row says

    def watch(self) -> Batch | None:
        """Return tables that changed without a row of theirs, everything if nothing is remembered, or None."""
        with self._trouble():
            now = time.monotonic()
            if self._watch.began and now < self._looked + WATCH_SECONDS:
                return None
            assert self._sql is not None  # noqa: S101
            try:
                with impatient(self._sql):
                    state = self._watch.publish(self._sql, self._look(self._sql))
            except psycopg.errors.LockNotAvailable:
                if not self._watch.began:
                    raise  # who does not know yet which tables show whose rows cannot read what has changed
                self._look_at_slot(now)
                return None
            self._note(state, now)
            self._stale.descend(parents(state.members))
            return self._watch.compare(self._sql, state, self._history)

    # the stream

    def read(self, seconds: float) -> Batch | None:
        """Return what became stale and is visible to every reader that begins now; None if nothing did in time."""
        with self._trouble():
            until = time.monotonic() + seconds
            while not self._gather():
                left = until - time.monotonic()
                if left <= 0 and self._changes.empty:
                    return None
                self._await(max(0.0, min(left, ALIVE_SECONDS)) if self._changes.empty else ALIVE_SECONDS)
            batch = self._changes.take()
            self._await_visible(batch)
            return batch

    def _gather(self) -> bool:
        """Take in what has arrived; return whether it ends with a transaction, and is something."""
        assert self._replication is not None  # noqa: S101
        changes = self._changes
        while changes.within or changes.rows < BATCH_ROWS:
            size, data = self._replication.get_copy_data(1)
            if size == 0:
                break
            if size < 0:
                raise self._ended()
            self._take(bytes(data))
        self._say()
        return not changes.empty and not changes.within

    def _ended(self) -> Exception:
        """Return why the server has ended the replication."""
        assert self._replication is not None  # noqa: S101
        result = self._replication.get_result()
        why = b"" if result is None else result.error_message
        if result is not None and result.error_field(pq.DiagnosticField.SQLSTATE) == _UNDEFINED_OBJECT:
            # There was no publication at some time since the slot was confirmed: nothing behind can be decoded.
            return _SlotUnusable(why.decode(errors="replace").strip())
        return SourceError(f"the server has ended the replication: {why.decode(errors='replace').strip()}")

    def _take(self, data: bytes) -> None:
        message = unframe(data)
        if isinstance(message, Keepalive):
            if self._changes.empty:
                # What is kept for the slot would grow for ever while others write, and nothing here changes.
                self._confirmed = max(self._confirmed, message.end)
            self._say(now=message.wants_reply)
        else:
            self._changes.add(decode(message))

    def _await(self, seconds: float) -> None:
        assert self._replication is not None  # noqa: S101
        if self._wake.wait(seconds, self._replication.socket):
            self._replication.consume_input()
            self._heard = time.monotonic()
        elif time.monotonic() > self._heard + SILENCE_SECONDS:
            raise SourceError("the server is silent")
        self._say()

    def _await_visible(self, batch: Batch) -> None:
        """Wait until the transactions of a batch are visible to whoever looks.

        1 W: COMMIT is in the WAL   2 F: sees it, invalidates   3 R: lease, SELECT: old, fill   4 W: visible to others
        The row would be stale until its TTL. Between 1 and 4 lie microseconds, or, with a synchronous standby, as
        long as that takes. So 2 waits for 4: the fill's lease is then older than the invalidation.
        """
        while batch.xids:
            running = self._running(batch.xids)
            if not running:
                return
            batch.xids = running
            self.alive()
            self._wake.wait(VISIBLE_SECONDS)

    def _running(self, xids: set[int]) -> set[int]:
        assert self._sql is not None  # noqa: S101
        row: Any = self._sql.execute("SELECT pg_current_snapshot()::text").fetchone()
        return running_in(row[0], xids)

    def confirm(self, batch: Batch) -> None:
        """Say that a batch has been invalidated: it will not come again."""
        with self._trouble():
            if isinstance(batch.position, dict):
                assert self._sql is not None  # noqa: S101
                assert self._replication is not None  # noqa: S101
                self._watch.remember(self._sql, batch.position, self._history, self._replication.backend_pid)
            else:
                self._confirmed = max(self._confirmed, batch.position)
                self._say(now=True)

    # signs of life

    def alive(self) -> None:
        """Say that this follower lives, and look after the slot, which grows meanwhile."""
        with self._trouble():
            self._say()
            now = time.monotonic()
            if now >= self._looked + WATCH_SECONDS:
                self._look_at_slot(now)

    def _look_at_slot(self, now: float) -> None:
        assert self._sql is not None  # noqa: S101
        found = _catalog.slot(self._sql, self._name)
        self._looked = now
        self._check(found)

    def _note(self, state: State, now: float) -> None:
        self._looked = now
        self._health = Health(
            self._health.kept_bytes,
            (*_catalog.problems(state), *_catalog.missing(state), *_catalog.blind_spots(state)),
            self._health.started_over,
        )
        self._check(state.slot)

    def _check(self, slot: _catalog.Slot | None) -> None:
        kept = 0 if slot is None else slot.kept_bytes
        self._health = Health(kept, self._health.problems, self._health.started_over)
        if slot is None or self._unusable(slot):
            raise _SlotUnusable
        if slot.awaited:  # 1 W: COMMIT waits for F   2 F: waits until it is visible   nobody goes on
            raise SourceError("commits wait for the follower as for a standby")

    def _say(self, *, now: bool = False) -> None:
        if now or time.monotonic() >= self._said + ALIVE_SECONDS:
            assert self._replication is not None  # noqa: S101
            self._replication.put_copy_data(status(self._confirmed, time.time()))
            self._replication.flush()
            self._said = time.monotonic()

    def health(self) -> Health:
        """Return what was last seen; asks nothing."""
        return self._health

    # connections

    def interrupt(self) -> None:
        """End a statement that waits in the database; from any thread, after the wake."""
        connection = self._sql
        if connection is not None:
            with suppress(psycopg.Error):  # it may be closed at this moment
                connection.cancel()

    def close(self) -> None:
        """Let another follower lead."""
        if self._replication is not None:
            self._replication.finish()
        if self._sql is not None:
            self._sql.close()
        self._replication = self._sql = None
        self._reset()

    def _command(self, sql: str) -> pq.abc.PGresult:
        assert self._replication is not None  # noqa: S101
        result = self._replication.exec_(sql.encode())
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_BOTH):
            raise SourceError(self._replication.error_message.decode(errors="replace").strip())
        return result

    def _look(self, connection: psycopg.Connection[Any]) -> State:
        return _catalog.look(connection, self._name, self._stale.tables())

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.Error, OSError) as error:
            if self._wake.woken:
                raise Interrupted from None
            raise SourceError(str(error).strip()) from error
        except (DecodeError, _SlotUnusable) as error:
            # What cannot be read cannot be confirmed either, and would come again for ever.
            self._renew()
            raise SourceError(f"begins with a new slot, everything is invalidated: {error!r}") from error

    def _renew(self) -> None:
        if self._replication is not None:
            self._replication.finish()  # a slot in use cannot be dropped
            self._replication = None
        self._discard = True


def running_in(snapshot: str, xids: set[int]) -> set[int]:
    """Return which of some transactions are running in a snapshot, `xmin:xmax:xip,...` of 64-bit ids; `xids` have 32.

    An id that is not far from the snapshot's newest is meant.
    """
    _, newest_text, list_text = snapshot.split(":")
    newest = int(newest_text)
    running = {int(each) & 0xFFFF_FFFF for each in list_text.split(",") if each}
    return {xid for xid in xids if xid in running or (xid - newest) & 0xFFFF_FFFF < 0x8000_0000}
