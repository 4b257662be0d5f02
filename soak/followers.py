"""Followers in processes of their own, and the one who watches how far they lag.

The watch changes a row now and then, as an outsider. When the slot is confirmed behind that commit, or the outbox has
lost its note and all that were there, the follower says that all before it is invalidated, and what outsiders had
committed then is owed to every get from that moment on.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg

from soak.followed import Followed
from soak.ledger import Ledger
from soak.rows import ROWS

ROOT = Path(__file__).resolve().parents[1]
LOOK_SECONDS = 0.005  # between two looks at the slot
BEAT_SECONDS = 0.05  # between two changes of the watch
START_SECONDS = 120  # until a follower leads, on a machine that is busy with other things

# Where the database is now, and whether that has been followed.
LOGGED = (
    "SELECT pg_current_wal_flush_lsn()::text",
    "SELECT bool_and(confirmed_flush_lsn >= %s::pg_lsn) FROM pg_replication_slots",
)
NOTED = (
    "SELECT coalesce(array_agg(id), '{}') FROM sqlmodel_cache_outbox",
    "SELECT NOT EXISTS (SELECT FROM sqlmodel_cache_outbox WHERE id = ANY (%s))",
)


class Followers:
    """Two of them: one leads, and the other waits. They read the log, or an outbox."""

    def __init__(self, database_url: str, redis_url: str, *, outbox: bool = False) -> None:
        modules = ["soak.cache", "soak.tables", "soak.followed"]
        command = [sys.executable, "-m", "sqlmodel_cache.cli", "follow", database_url, *modules]
        self._command = [*command, *(["--outbox"] if outbox else [])]
        self._environment = os.environ | {"SOAK_REDIS_URL": redis_url}
        self._database_url = database_url
        self._backend = "client backend" if outbox else "walsender"
        self._all: list[subprocess.Popen[bytes]] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  stop() closes it

    def start(self) -> None:
        """Prepare the database, and begin."""
        with psycopg.connect(self._database_url) as connection:
            connection.execute(f"CREATE TABLE {Followed.__tablename__} (id int PRIMARY KEY, version int NOT NULL)")
            connection.execute(f"INSERT INTO {Followed.__tablename__} VALUES (0, 0)")
        setup = [*self._command, "--setup"]
        subprocess.run(setup, cwd=ROOT, env=self._environment, check=True, stdout=subprocess.DEVNULL)
        self._all = [self._new(), self._new()]

    def _new(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stderr=self._log)

    def kill(self, chance: random.Random) -> None:
        """Kill one without warning, and start another."""
        self._await_both()
        self._replace(chance.randrange(2), signal.SIGKILL)

    def freeze(self, chance: random.Random, seconds: float) -> None:
        """Stop one in what it does, and let it go on later."""
        self._await_both()
        frozen = chance.choice(self._all)
        frozen.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        frozen.send_signal(signal.SIGCONT)

    def restart(self, chance: random.Random) -> None:
        """Tell one to end, and start another."""
        self._await_both()
        self._replace(chance.randrange(2), signal.SIGTERM)

    def _replace(self, at: int, number: signal.Signals) -> None:
        self._all[at].send_signal(number)
        self._all[at].wait()
        self._all[at] = self._new()

    def _await_both(self) -> None:
        """Wait until both are connected, so that a lag is not the time that a process takes to start."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = %s AND application_name = %s"
        until = time.monotonic() + START_SECONDS
        with psycopg.connect(self._database_url, autocommit=True) as connection:
            while connection.execute(query, (self._backend, "sqlmodel-cache follow")).fetchone() != (2,):
                if time.monotonic() > until:
                    raise RuntimeError(f"two followers are not there within {START_SECONDS} s")
                time.sleep(LOOK_SECONDS)

    def said(self) -> str:
        """Return the last that they have logged."""
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")

    def stop(self) -> None:
        """Kill both."""
        for each in self._all:
            each.kill()
            each.wait()
        self._log.close()


class Watch:
    """Tells the ledger what outsiders' versions are owed, and measures the lag. Without a follower, time alone counts.

    Args:
        ledger: of the run.
        database_url: of the database, for psycopg.
        bound: seconds that a lag may last.
        followed: whether there is a follower.
        outbox: whether it reads one.
    """

    def __init__(self, ledger: Ledger, database_url: str, bound: float, *, followed: bool, outbox: bool) -> None:
        self.lags: list[float] = []
        self.errors: list[str] = []
        self._ledger = ledger
        self._bound = bound
        self._followed = followed
        self._done = NOTED if outbox else LOGGED
        self._over = threading.Event()
        self._connection = psycopg.connect(database_url, autocommit=True)
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Return when a follower leads; what it lags from now on, counts."""
        if self._followed:
            self._await_follower(time.monotonic(), START_SECONDS)
        self._thread.start()

    def finish(self) -> None:
        """Return when all that outsiders have committed is owed, or the bound has passed."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        last = False
        while not last and not self.errors:
            last = self._over.wait(BEAT_SECONDS)  # a beat begins after the end, too
            try:
                self._beat()
            except Exception as error:
                self.errors.append(f"the watch has ended: {error!r}")
        if self.errors:
            self._ledger.stop.value = 1

    def _beat(self) -> None:
        began = time.monotonic()
        committed = [self._ledger.committed_outside(pk) for pk in range(ROWS)]
        if self._followed:
            self._await_follower(began, self._bound)
        else:
            time.sleep(self._bound)
        self._ledger.owe(committed)
        self.lags.append(time.monotonic() - began)

    def _await_follower(self, began: float, seconds: float) -> None:
        self._connection.execute(f"UPDATE {Followed.__tablename__} SET version = version + 1")
        now, query = self._done
        position = self._connection.execute(now).fetchone()
        while self._connection.execute(query, position).fetchone() != (True,):
            if time.monotonic() > began + seconds:
                raise RuntimeError(f"the follower lags for more than {seconds} s")
            time.sleep(LOOK_SECONDS)
