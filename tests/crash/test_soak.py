"""The soak program, shortly: it finds nothing with the library, and something with a cache that deletes after commit.

With writers outside the library it finds nothing while a follower runs, and something without one.

`make soak` runs it for ten minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LONG = os.environ.get("SQLMODEL_CACHE_LONG") == "1"
ROOT = Path(__file__).parents[2]


# What is done to the servers, and to the writers.
TOPOLOGIES = {
    "single": ("Redis flushed", "Redis restarted empty", "Redis paused", "writers killed"),
    "cluster": ("slots moved", "failed over", "primaries killed", "writers killed"),
    "sentinel": ("masters killed", "writers killed"),
}


def soak(*arguments: str) -> tuple[int, dict[str, int]]:
    """Return the exit code of a soak, and the figures that it printed."""
    command = [sys.executable, "-m", "soak", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(done.stdout, done.stderr)
    lines = re.findall(r"^([A-Za-z ]+?) +([\d,]+)(?: ms)?$", done.stdout, re.MULTILINE)
    return done.returncode, {name: int(figure.replace(",", "")) for name, figure in lines}


def test_soak_finds_nothing_stale() -> None:
    """With every fault injected at least once, no read is stale, phantom or stale for good."""
    code, figures = soak("--seconds", "10", "--mode", "strong", "--seed", "1")
    assert code == 0
    assert figures["stale reads"] == figures["phantom reads"] == figures["permanent stale rows"] == 0
    assert all(figures[fault] for fault in TOPOLOGIES["single"])
    assert figures["reads"] > figures["writes"] > 0


@pytest.mark.parametrize("topology", ["cluster", *(["sentinel"] if LONG else [])])
def test_soak_of_several_servers_finds_nothing_stale(topology: str) -> None:
    """Slots move under load, primaries are failed over and killed: no read is stale, and no call raises.

    Commits are refused, with `on_unreachable="refuse"`, while nobody serves their slots.
    """
    code, figures = soak("--seconds", "60" if LONG else "8", "--mode", "strong", "--seed", "1", "--topology", topology)
    assert code == 0
    assert figures["stale reads"] == figures["phantom reads"] == figures["permanent stale rows"] == 0
    assert all(figures[fault] for fault in TOPOLOGIES[topology])
    assert figures["reads"] > figures["writes"] > figures["refused"]


def test_soak_sees_a_naive_cache_fail() -> None:
    """The same program finds stale reads when the cache only deletes after the commit."""
    code, figures = soak("--seconds", "120", "--mode", "naive", "--seed", "1")
    assert code == 1
    assert figures["stale reads"] > 0


@pytest.mark.parametrize("topology", ["single", *(["cluster", "sentinel"] if LONG else [])])
def test_soak_finds_others_writes_followed(topology: str) -> None:
    """What a follower has confirmed, no read is older than, whatever is killed, frozen or restarted."""
    seconds = "60" if LONG else "10"
    code, figures = soak("--seconds", seconds, "--others", "followed", "--seed", "1", "--topology", topology)
    assert code == 0
    assert figures["stale reads"] == figures["phantom reads"] == figures["permanent stale rows"] == 0
    assert all(figures[fault] for fault in ("followers killed", "followers frozen", "followers restarted"))
    assert all(figures[fault] for fault in TOPOLOGIES[topology])
    assert figures["longest lag"] < 15_000
    assert figures["reads"] > figures["writes of others"] > 0


def test_soak_sees_others_writes_without_a_follower() -> None:
    """The same program finds rows that are stale for longer than a follower lags when there is none."""
    code, figures = soak("--seconds", "120", "--others", "unfollowed", "--bound", "0.25", "--seed", "1")
    assert code == 1
    assert figures["stale reads"] > 0
