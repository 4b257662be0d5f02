"""How a process ends that has used the library: without a warning, without waiting for long, without a thread left.

Each test is a program of its own, with every warning an error, and asyncio's and the interpreter's own checks on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from models import Hero, add_hero
from proxy import Mood, Proxy
from servers import RedisServer
from sqlalchemy import Engine
from sqlmodel import Session

from sqlmodel_cache import RedisSyncTransport, SQLModelCache

TESTS = Path(__file__).parents[1]
SYNC = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)

BEGIN = """
import asyncio, os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import redis
from models import Hero
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Session, create_engine
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel_cache import RedisSyncTransport, SQLModelCache
from waiting import until

transport = RedisSyncTransport(redis.Redis(port=int(sys.argv[3])), timeout=0.2, commit_timeout=0.2)
SQLModelCache.configure(transport, namespace="n")
engine = create_engine(sys.argv[2])

def read():
    with Session(engine) as session:
        return session.get_one(Hero, 1).name

def write(name):
    with Session(engine) as session:
        session.get_one(Hero, 1).name = name
        session.commit()

def threads():
    return [thread for thread in threading.enumerate() if thread.name == "sqlmodel-cache-keeper"]

read(), read()
print("ready", flush=True)
input()
write("New")
"""

# How programs end, and the status that they end with.
ENDINGS = {
    "normally": ("engine.dispose()", 0),
    "SystemExit": ("engine.dispose(); sys.exit(3)", 3),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", -signal.SIGTERM),
    "execv": ("engine.dispose(); os.execv(sys.executable, [sys.executable, '-c', 'import sys; sys.exit(4)'])", 4),
    "closed": ("SQLModelCache.close(); assert not threads(); engine.dispose()", 0),
    "reset": ("SQLModelCache.reset(); until(lambda: not threads()); engine.dispose()", 0),
    "fork": (
        """
child = os.fork()
assert read() == "New"
if child == 0:
    engine.dispose()
    sys.exit(0)
engine.dispose()
assert os.waitpid(child, 0)[1] == 0
""",
        0,
    ),
    "asyncio": (
        """
async def main():
    async_engine = create_async_engine(sys.argv[2].replace("sqlite:", "sqlite+aiosqlite:"))
    async with AsyncSession(async_engine) as session:
        hero = await session.get_one(Hero, 1)
        hero.name = "Newer"
        await session.commit()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    await async_engine.dispose()
    await SQLModelCache.aclose()
    assert not threads()
engine.dispose()
asyncio.run(main(), debug=True)
""",
        0,
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis."""
    own = RedisServer()
    yield own
    own.stop()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """A proxy to it; it holds no key."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
    own = Proxy(server.port)
    yield own
    own.close()


def ended(engine: Engine, proxy: Proxy, mood: Mood, ending: str, then: Mood | None = None) -> tuple[int, str]:
    """Return the status of a program that committed while the proxy was in a mood, and what it wrote to stderr."""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", BEGIN + ending, str(TESTS), str(engine.url)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, str(proxy.port)], text=True, **pipes) as program:  # type: ignore[call-overload]
        assert program.stdout.readline() == "ready\n", program.stderr.read()
        proxy.be(mood)
        if then is None:
            errors = program.communicate("go\n", timeout=60)[1]
        else:
            print("go", file=program.stdin, flush=True)
            assert program.stdout.readline() == "owed\n", program.stderr.read()
            proxy.be(then)
            errors = program.communicate("end\n", timeout=60)[1]
        return program.returncode, "\n".join(line for line in errors.splitlines() if not line.startswith("the cache "))


@SYNC
@pytest.mark.parametrize(("how", "mood"), [*((how, "silent") for how in ENDINGS), ("asyncio", "pass")])
def test_program_ends(engine: Engine, proxy: Proxy, how: str, mood: Mood) -> None:
    """Whatever state Redis is in, and however the program ends: its own status, and nothing on stderr."""
    add_hero(engine)
    ending, status = ENDINGS[how]
    assert ended(engine, proxy, mood, ending) == (status, "")


@SYNC
def test_what_is_owed_is_delivered_at_the_end(engine: Engine, server: RedisServer, proxy: Proxy) -> None:
    """When Redis is back, the last thing that a process does is to tell it what it owes."""
    add_hero(engine)
    # Its thread would try again soon enough; here it is the end of the process that has to.
    ending = "assert SQLModelCache.stats().owed; print('owed', flush=True); input(); engine.dispose()"
    assert ended(engine, proxy, "refuse", ending, "pass") == (0, "")
    with redis.Redis(port=server.port) as client:
        SQLModelCache.configure(RedisSyncTransport(client, timeout=30), namespace="n")
        with Session(engine) as session:
            assert session.get_one(Hero, 1).name == "New"


@SYNC
def test_exit_does_not_wait_for_long(engine: Engine, proxy: Proxy) -> None:
    """A server that never answers holds up the end for LAST_CHANCE, however patient the transport is."""
    add_hero(engine)
    ending = """
driver = SQLModelCache._cache.driver
assert driver.debts
driver.sync_transport.execute = lambda effect: threading.Event().wait(1000)
engine.dispose()
"""
    assert ended(engine, proxy, "silent", ending) == (0, "")
