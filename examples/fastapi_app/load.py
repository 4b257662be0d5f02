"""Send requests to the application, first with the cache off, then with it on, and print both side by side."""

import argparse
import asyncio
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from .database import HEROES, TEAMS

WRITES = 0.02  # of the requests change what others read
TEAM_READS = 0.2


@dataclass
class Run:
    """What the clients of one run have seen; times in ms."""

    answers: list[float] = field(default_factory=list)  # what reads took, as the client sees it
    reads: list[float] = field(default_factory=list)  # what session.get() took in the application
    errors: int = 0
    seconds: float = 0.0
    hits: int = 0
    loads: int = 0  # reads that asked the database


async def client(http: httpx.AsyncClient, run: Run, end: float, cache: str, rng: random.Random) -> None:
    """Send one request after the other. A few heroes are asked for much more often than the others."""
    while time.perf_counter() < end:
        hero = min(int(rng.paretovariate(0.7)), HEROES)
        if rng.random() < WRITES:
            body = {"name": f"Hero {hero}", "team_id": rng.randint(1, TEAMS)}
            answer = await http.put(f"/heroes/{hero}", params={"cache": cache}, json=body)
            run.errors += answer.is_error
            continue
        path = f"/teams/{rng.randint(1, TEAMS)}" if rng.random() < TEAM_READS else f"/heroes/{hero}"
        began = time.perf_counter()
        answer = await http.get(path, params={"cache": cache})
        run.answers.append((time.perf_counter() - began) * 1000)
        run.errors += answer.is_error
        if answer.is_success:
            run.reads.append(float(answer.headers["server-timing"].partition("dur=")[2]))


async def measure(http: httpx.AsyncClient, clients: int, seconds: float, cache: str) -> Run:
    """Return what clients saw, side by side."""
    run = Run()
    before = await counted(http)
    began = time.perf_counter()
    rngs = [random.Random(number) for number in range(clients)]
    await asyncio.gather(*(client(http, run, began + seconds, cache, rng) for rng in rngs))
    run.seconds = time.perf_counter() - began
    after = await counted(http)
    hits, misses, bypasses = (after[name] - before[name] for name in ("hits", "misses", "bypasses"))
    run.hits, run.loads = hits, misses + bypasses
    return run


async def counted(http: httpx.AsyncClient) -> dict[str, Any]:
    """Return what the application has counted."""
    stats: dict[str, Any] = (await http.get("/cache/data")).raise_for_status().json()["stats"]
    return stats


def rows(run: Run) -> dict[str, str]:
    """Return the lines of one run's column."""
    found = {
        "requests/s": f"{len(run.answers) / run.seconds:,.0f}",
        "errors": f"{run.errors}",
        "hit rate": f"{run.hits / max(1, run.hits + run.loads):.1%}",
        "reads of the database": f"{run.loads / max(1, run.hits + run.loads):.1%}",
    }
    for name, times in (("session.get()", run.reads), ("whole request", run.answers)):
        cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
        found |= {
            f"{name}, {label}": f"{cuts[cut - 1]:.2f} ms" for label, cut in (("median", 50), ("95 %", 95), ("99 %", 99))
        }
    return found


async def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m examples.fastapi_app.load", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the two runs")
    parser.add_argument("--clients", type=int, default=2)
    given = parser.parse_args()
    try:
        async with httpx.AsyncClient(base_url=given.url, timeout=30) as http:
            columns = [rows(await measure(http, given.clients, given.seconds, cache)) for cache in ("false", "true")]
    except httpx.TransportError as error:
        sys.exit(f"{given.url} does not answer ({type(error).__name__}): run `make example` in another terminal")
    print(f"{'':24}{'cache off':>12}{'cache on':>12}")
    for name, off in columns[0].items():
        print(f"{name:24}{off:>12}{columns[1][name]:>12}")


if __name__ == "__main__":
    asyncio.run(main())
