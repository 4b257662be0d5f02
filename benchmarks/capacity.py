"""What a hit, a miss and a commit take of Redis: `python -m benchmarks.capacity` prints the tables of docs/scaling.md.

The traffic is the library's own, through a proxy that counts bytes, to a server that counts the CPU time of its
commands. The server's own figures leave out reading from and writing to sockets: so the process's CPU is there, too.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

sys.path.insert(0, str(File(__file__).resolve().parents[1] / "tests"))

import redis
from proxy import Proxy
from sqlmodel import Session

from benchmarks.model import ROWS, Product
from benchmarks.world import World, get_each
from sqlmodel_cache import RedisSyncTransport, SQLModelCache

COMMANDS = ("mget", "evalsha", "eval")
GETS = 20_000
COMMITS = 2_000
PATIENCE = 30
BATCH = 100


@dataclass
class Taken:
    """What one time takes of the server and of the network."""

    commands: float
    command_us: float  # of the server's CPU, within commands
    process_us: float  # of the server's CPU, in all
    sent: float  # bytes to the server
    received: float

    def row(self, name: str) -> str:
        """Return a row of the table."""
        return (
            f"| {name} | {self.commands:.2f} | {self.command_us:.1f} | {self.process_us:.1f} "
            f"| {self.sent:,.0f} | {self.received:,.0f} | {1e6 / self.process_us:,.0f} |"
        )


class Meter:
    """A server's counters and a proxy's, before and after."""

    def __init__(self, client: redis.Redis, proxy: Proxy) -> None:
        self._client = client
        self._proxy = proxy

    def _now(self) -> tuple[float, ...]:
        stats: Any = self._client.info("commandstats")
        cpu: Any = self._client.info("cpu")
        calls = sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in COMMANDS)
        usec = sum(stats.get(f"cmdstat_{name}", {}).get("usec", 0) for name in COMMANDS)
        process = (cpu["used_cpu_user"] + cpu["used_cpu_sys"]) * 1e6
        return (calls, usec, process, *self._proxy.bytes)

    def measure(self, count: int, act: Callable[[], object]) -> Taken:
        """Return what one of `count` times takes."""
        before = self._now()
        act()
        return Taken(*((after - was) / count for was, after in zip(before, self._now(), strict=True)))


def main() -> None:
    """Print the tables."""
    world = World()
    with world.stack:
        direct = world.client()
        proxy = Proxy(int(world.redis_url.rsplit(":", 1)[1].split("/")[0]))
        world.stack.callback(proxy.close)
        engine = world.sqlite()
        client = redis.Redis(port=proxy.port)
        SQLModelCache.configure(RedisSyncTransport(client, timeout=PATIENCE, commit_timeout=PATIENCE))
        world.stack.callback(SQLModelCache.reset)
        get = get_each(engine)
        get(ROWS)
        meter = Meter(direct, proxy)

        def miss() -> None:
            for _ in range(GETS // 10 // ROWS):
                for key in direct.scan_iter("*}:*"):
                    direct.delete(key)
                get(ROWS)

        def commit(count: int) -> None:
            for number in range(COMMITS // count):
                with Session(engine) as session:
                    for pk in range(1, count + 1):
                        session.get_one(Product, pk, execution_options={"cache": False}).weight = float(number)
                    session.commit()

        def many() -> None:
            for _ in range(GETS // BATCH):
                with Session(engine) as session:
                    SQLModelCache.get_many(session, Product, range(1, BATCH + 1))

        print(
            "| | commands | µs in commands | µs of the process | bytes sent | bytes received | a second on one core |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        hit = meter.measure(GETS, lambda: get(GETS))
        print(hit.row("hit"))
        print(meter.measure(GETS, many).row(f"hit, one of {BATCH} by `get_many`"))
        print(meter.measure(GETS // 10, miss).row("miss: look-up, lease, fill"))
        print(meter.measure(COMMITS, lambda: commit(1)).row("commit of one row: fence, release"))
        print(meter.measure(COMMITS // 100, lambda: commit(100)).row("commit of 100 rows"), flush=True)
        get(ROWS)
        memory(direct)
        print(f"\nThis process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")


def memory(client: redis.Redis) -> None:
    """Print what rows take in the server's memory."""
    values: dict[bytes, Any] = {key: client.get(key) for key in client.keys("*}:*")}
    key, stored = next((key, value) for key, value in values.items() if value[:1] == b"V")
    before: Any = client.info("memory")
    count = 100_000
    pipe = client.pipeline(transaction=False)
    head = key[: key.rindex(b":") + 1]
    for number in range(count):
        pipe.set(head + b"%d" % (1_000_000 + number), stored, px=3_600_000)
    pipe.execute()
    after: Any = client.info("memory")
    each = (after["used_memory"] - before["used_memory"]) / count
    print(f"\nA row of {len(stored)} bytes takes {each:.0f} bytes of memory: {2**30 / each / 1e6:.1f} million in a GiB")


if __name__ == "__main__":
    main()
