"""Another process, which does what its input says: `DATABASE_URL REDIS_URL` first, then a size a line, or `fork`.

Behind the URLs may stand an encryption key; then it hashes primary keys, too.

For each size it commits star 1 with that size, and prints the time.monotonic() at which `commit()` had returned. For
`fork` it gets the star near, forks, and prints what its child makes of the near cache.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from near.rows import get_star, near, resize, until, warm
from patient import PATIENCE
from sqlalchemy import Engine
from sqlmodel import create_engine

from sqlmodel_cache import NearCache, SQLModelCache


def sealed(key: str) -> dict[str, Any]:
    """Return what makes Redis tell nobody who lacks the key."""
    return {"encryption_key": key, "hash_keys": True}


def fork(engine: Engine) -> None:
    """Fork while a thread listens, and hear in the child what the parent commits then."""
    warm(engine)
    engine.dispose()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        try:
            be_forked(engine, reading)
        except BaseException as why:
            print(repr(why), flush=True)
        os._exit(0)
    os.close(reading)
    sys.stdin.readline()  # until the child is warm
    resize(engine, 77)
    assert get_star(engine).size == 77
    os.write(writing, b"!")
    os.waitpid(child, 0)


def be_forked(engine: Engine, reading: int) -> None:
    """Do the child's part."""
    problems = [] if len(near()) == 0 else ["it has its parent's rows"]
    problems += [] if threading.active_count() == 1 else ["it has its parent's threads"]
    warm(engine)
    print("warm", flush=True)
    os.read(reading, 1)  # until the parent has committed
    until(lambda: get_star(engine).size == 77)
    SQLModelCache.reset()
    print(", ".join(problems) or "as it should be", flush=True)


def main() -> None:
    """Do it."""
    database_url, redis_url, *keys = sys.stdin.readline().split()
    engine = create_engine(database_url)
    SQLModelCache.configure(
        redis_url, near_cache=NearCache(max_age=3600), timeout=PATIENCE, **(sealed(*keys) if keys else {})
    )
    for line in sys.stdin:
        if line == "fork\n":
            fork(engine)
        else:
            resize(engine, int(line))
            print(time.monotonic(), flush=True)
    SQLModelCache.reset()
    engine.dispose()


main()
