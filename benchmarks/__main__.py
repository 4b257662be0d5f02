"""The command line: `python -m benchmarks [name ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path as File

sys.path.insert(0, str(File(__file__).resolve().parents[1] / "tests"))  # the servers that the tests start


def main() -> int:
    """Race every path whose function is named, or all; print the table. 0 when every target is met, else 1."""
    import servers

    from benchmarks.measure import race
    from benchmarks.paths import PATHS, World

    parser = argparse.ArgumentParser(prog="benchmarks", description="Race the library against its floors.")
    parser.add_argument("paths", nargs="*", help=", ".join(path.__name__ for path in PATHS))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    missed = 0
    with servers.redis_url() as redis_url:
        world = World(redis_url)
        with world.stack:
            for paths in PATHS:
                if options.paths and paths.__name__ not in options.paths:
                    continue
                for path in paths(world):
                    found = race(path.cases, rounds=options.rounds)
                    ratio = found["measured"] / found["floor"]
                    met = ratio <= path.limit
                    times = f"{found['floor']:8.1f} {found['measured']:8.1f} us"
                    line = f"{path.name:38} {times}  {ratio:5.2f} <= {path.limit}"
                    if path.faster_than:
                        faster = found[path.faster_than] / found["measured"]
                        met &= faster >= path.times_faster
                        line += f"  {faster:5.1f} x faster than {path.faster_than} >= {path.times_faster}"
                    print(line, "" if met else "  MISSED", flush=True)
                    missed += not met
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
