"""The command line: `python -m benchmarks [path ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path as File

ROOT = File(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the servers that the tests start


def main() -> int:
    """Race every path that is named, or all, and print the table. 0 when every target is met, else 1.

    Only a run of all paths is written into the documents.
    """
    from benchmarks import costs, hits, news, report, table, tasks, writes
    from benchmarks.profile import profiles
    from benchmarks.world import QUICK, Effort, World

    paths = (
        *(hits.in_process, hits.redis_sync, tasks.redis_async, tasks.at_once, hits.near, hits.get_many, hits.get_by),
        *(news.near_news, writes.miss, writes.commits, writes.stampede, writes.invalidation),
        *(costs.untouched, costs.left_out, costs.bytes_in_redis, costs.memory),
    )
    parser = argparse.ArgumentParser(prog="benchmarks", description="Race the library against its floors.")
    parser.add_argument("paths", nargs="*", help=", ".join(path.__name__ for path in paths))
    parser.add_argument("--quick", action="store_true", help="everything once: the figures mean nothing")
    parser.add_argument("--docs", type=File, default=ROOT / "docs", help="where performance.md is")
    options = parser.parse_args()
    unknown = set(options.paths) - {path.__name__ for path in paths}
    if unknown:
        parser.error(f"no such path: {', '.join(sorted(unknown))}")
    world = World(QUICK if options.quick else Effort())
    lines = []
    with world.stack:
        print(table.header())
        for path in paths:
            if options.paths and path.__name__ not in options.paths:
                continue
            for line in path(world):
                lines.append(line)
                print(*table.printed(line), sep="\n", flush=True)
        if not options.paths:
            report.write(options.docs, lines, profiles(world), world)
    return 1 if any(line.missed for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
