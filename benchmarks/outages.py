"""What users see of each fault: through a proxy, with the time-outs that configure() has.

`python -m benchmarks.outages` prints the table of docs/operations.md. A figure is of one process on this machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path as File
from typing import get_args

sys.path.insert(0, str(File(__file__).resolve().parents[1] / "tests"))

import redis
from models import Hero, add_hero, get_hero
from proxy import Mood, Proxy
from servers import RedisServer
from sqlmodel import Session, SQLModel, create_engine
from waiting import until

from sqlmodel_cache import InvalidationError, RedisSyncTransport, SQLModelCache

MOODS = [mood for mood in get_args(Mood) if mood != "pass"]
LATE = 0.5  # seconds that a slow server takes for a reply: longer than a read waits, shorter than a commit does
READS = 200


def timed(function: Callable[[], object]) -> float:
    """Return how many milliseconds a call takes."""
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Print a row of the table for each fault."""
    server = RedisServer()
    proxy = Proxy(server.port)
    proxy.late = LATE
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/outages.db")
        SQLModel.metadata.create_all(engine)
        pk = add_hero(engine)

        def rename() -> None:
            with Session(engine) as session:
                session.get_one(Hero, pk, execution_options={"cache": False}).age = time.monotonic_ns() % 1000
                session.commit()

        def database() -> None:
            with Session(engine) as session:
                session.get_one(Hero, pk, execution_options={"cache": False})

        def refused() -> str:
            began = time.perf_counter()
            try:
                rename()
            except InvalidationError:
                return f"refused after {(time.perf_counter() - began) * 1000:,.0f} ms"
            return "goes on"

        def configure(on_unreachable: str = "serve") -> None:
            client = redis.Redis(port=proxy.port)
            SQLModelCache.configure(RedisSyncTransport(client), on_unreachable=on_unreachable)  # type: ignore[arg-type]
            get_hero(engine, pk)

        print(
            "| fault | a get, until the breaker opens | gets that pay it | a get afterwards | the first commit "
            "| a commit afterwards | first commit, `refuse` | asked again after |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for mood in MOODS:
            configure()
            proxy.be(mood)
            paid = []
            while not SQLModelCache.stats().unreachable:
                paid.append(timed(lambda: get_hero(engine, pk)) - timed(database))
            pairs = [timed(lambda: get_hero(engine, pk)) - timed(database) for _ in range(READS)]
            after = sorted(pairs)[READS // 2]
            late = timed(rename)
            proxy.be("pass")
            recovered = timed(lambda: until(lambda: not SQLModelCache.stats().unreachable))
            SQLModelCache.reset()
            configure()
            proxy.be(mood)
            first = timed(rename)
            proxy.be("pass")
            until(lambda: not SQLModelCache.stats().owed)
            SQLModelCache.reset()
            configure("refuse")
            proxy.be(mood)
            no = refused()
            proxy.be("pass")
            SQLModelCache.reset()
            print(
                f"| {mood} | +{max(paid):.1f} ms at most | {len(paid)} | +{max(after, 0):.2f} ms | {first:,.0f} ms "
                f"| {late:.1f} ms | {no} | {recovered:,.0f} ms |",
                flush=True,
            )
        engine.dispose()
    proxy.close()
    server.stop()


if __name__ == "__main__":
    main()
