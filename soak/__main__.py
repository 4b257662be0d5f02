"""The command line: `python -m soak --seconds 600 --mode strong --seed 1`."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the servers that the tests start


def main() -> int:
    """Run a soak, print its report and return the exit code: 0 kept, 1 broken, 2 nothing proven."""
    from soak.report import describe
    from soak.run import soak

    parser = argparse.ArgumentParser(prog="soak", description="Soak the consistency promise on real servers.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to read and write")
    parser.add_argument(
        "--mode",
        choices=("strong", "naive"),
        default="strong",
        help="the library, or a cache that deletes after commit, which must fail",
    )
    parser.add_argument("--topology", choices=("single", "cluster", "sentinel"), default="single", help="of Redis")
    parser.add_argument(
        "--others",
        choices=("none", "followed", "outbox", "unfollowed", "idle"),
        default="none",
        help="outsiders who write without the library, with followers of the log, of an outbox, or without any, "
        "which must fail; or only followers",
    )
    parser.add_argument("--bound", type=float, default=15.0, help="seconds that a follower may lag")
    parser.add_argument("--seed", type=int, default=secrets.randbits(16), help="of delays, faults and choices")
    options = parser.parse_args()
    result = soak(options.mode, options.seconds, options.seed, options.others, options.bound, options.topology)
    print(describe(result, options.mode, options.seed))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
