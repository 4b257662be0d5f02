"""The documents: the table, the plot, the machine and the flame graphs of a run go into docs/performance.md."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path as File
from typing import Any

from sqlalchemy import text
from sqlmodel import create_engine

from benchmarks.profile import Stacks, draw, owner, shares
from benchmarks.table import Goal, Line
from benchmarks.world import World

DOCUMENT = "performance.md"
TITLES = {"in-process": "In-process hits", "redis": "Redis hits", "tasks": "Hits of 100 tasks at once"}
PARTS = ("machine", "table", "profile")
TOP = 8  # functions that are named
PACKAGES = ("SQLAlchemy", "sqlmodel", "redis", "msgspec", "psycopg")


def write(folder: File, lines: Sequence[Line], stacks: dict[str, Stacks], world: World) -> None:
    """Put a run's figures between the marks of the document, and its pictures beside it."""
    document = folder / DOCUMENT
    found = document.read_text()
    for name, new in zip(PARTS, (_machine(world), _table(lines), _profile(stacks)), strict=True):
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        found, count = mark.subn(lambda match, new=new: f"{match[1]}\n{new}\n\n{match[2]}", found)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{document} has no place for the {name}")
    document.write_text(found)
    for name, samples in stacks.items():
        draw(samples, f"{TITLES[name]}: {samples.total():,} samples", folder / f"profile-{name}.svg")
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed (`make bench` does it)")
    else:
        plot(lines, folder)


# the text


def _rows(head: str, align: str, rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([head, align, *("| " + " | ".join(row) + " |" for row in rows)])


def _table(lines: Sequence[Line]) -> str:
    def cells(line: Line) -> Sequence[str]:
        targets = [goal.target for goal in line.goals if goal.target]
        reached = [f"{goal.reached} {goal.spread}".strip() for goal in line.goals]
        return line.path, "<br>".join(targets), line.measured, line.floor, "<br>".join(reached), line.verdict

    head = "| path | target | measured | floor | reached (quartiles of the rounds) | met |"
    table = _rows(head, "| --- | --- | ---: | ---: | --- | --- |", map(cells, lines))
    floors = _rows("| path | its floor |", "| --- | --- |", ((at.path, at.floor_is) for at in lines if at.floor_is))
    return f"{table}\n\nWhat each is compared with:\n\n{floors}"


def _profile(stacks: dict[str, Stacks]) -> str:
    parts = []
    for name, samples in stacks.items():
        whose = ", ".join(f"{who} {share:.0%}" for who, share in shares(samples, lambda frame: owner(frame)[0]))
        top = [(f"`{frame}`", f"{share:.0%}") for frame, share in shares(samples, str)[:TOP]]
        table = _rows("| function, without what it calls | share |", "| --- | ---: |", top)
        parts.append(f"![flame graph](profile-{name}.svg)\n\n{TITLES[name]}: {whose}.\n\n{table}")
    return "\n\n".join(parts)


def _machine(world: World) -> str:
    engine = create_engine(world.postgres_url)
    with engine.connect() as connection:
        postgresql, fsync = (connection.scalar(text(f"SHOW {name}")) for name in ("server_version", "fsync"))
    engine.dispose()
    redis_version: Any = world.client().info("server")
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    rounds = world.effort.rounds
    return "\n".join(
        [
            f"- {_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f} over the last 15 minutes; "
            f"{platform.system()}",
            f"- Python {platform.python_version()}, {packages}",
            f"- Redis {redis_version['redis_version']} and PostgreSQL {str(postgresql).split()[0]} on the same one; "
            f"`fsync` is {fsync}, and one of 8 KiB takes {_fsync_us():,.0f} µs",
            f"- {rounds} rounds, and {3 * rounds} of what must not be slowed down",
        ]
    )


def _processor() -> str:
    info = File("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _fsync_us() -> float:
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(20):
            file.write(bytes(8192))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


# the plot


def plot(lines: Sequence[Line], folder: File) -> None:
    """Draw every ratio beside its target, as SVG and PNG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "performance", "font.size": 9})
    from matplotlib import pyplot

    goals = [(f"{line.path}\n{goal.unit}", goal) for line in lines for goal in line.goals if goal.quartiles]
    sides = {
        "times longer: shorter bars are better": [pair for pair in goals if not pair[1].at_least],
        "times faster: longer bars are better": [pair for pair in goals if pair[1].at_least],
    }
    heights = [max(1, len(pairs)) for pairs in sides.values()]
    figure, axes = pyplot.subplots(
        2, 1, figsize=(9, 1.6 + 0.42 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    for axis, (title, pairs) in zip(axes, sides.items(), strict=True):
        _bars(axis, title, pairs)
    figure.savefig(folder / "performance.svg", metadata={"Date": None})
    figure.savefig(folder / "performance.png", dpi=110)
    pyplot.close(figure)


def _bars(axis: Any, title: str, pairs: Sequence[tuple[str, Goal]]) -> None:
    names = [name for name, _ in pairs]
    values = [goal.value for _, goal in pairs]
    colours = ["#9aa5ad" if goal.limit is None else "#4c8c6b" if goal.met else "#c8553d" for _, goal in pairs]
    axis.barh(range(len(pairs)), values, color=colours, height=0.6)
    for at, (_, goal) in enumerate(pairs):
        low, high = goal.quartiles or (goal.value, goal.value)
        axis.plot([low, high], [at, at], color="black", linewidth=1)
        if goal.limit is not None:
            axis.plot([goal.limit] * 2, [at - 0.4, at + 0.4], color="black", linewidth=2)
        axis.annotate(
            f" {goal.value:.2f}",
            (max(high, goal.limit or 0, 1), at),
            va="center",
            xytext=(4, 0),
            textcoords="offset points",
        )
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(pairs)), names)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_title(title, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
