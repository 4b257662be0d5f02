"""Where the time of a hit goes: its stacks, sampled by a signal, as a flame graph and by whose code it is."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path as File
from types import FrameType
from typing import TypeAlias

from benchmarks.model import ROWS
from benchmarks.tasks import hundred_hits
from benchmarks.world import World, cached, get_each
from sqlmodel_cache import MemoryTransport, SQLModelCache

Stacks: TypeAlias = "Counter[tuple[str, ...]]"
"""Samples by stack, the outermost frame first. A frame is "module function"."""

INTERVAL = 0.001  # seconds between samples
WIDTH, HEIGHT, MARGIN = 1200, 18, 34  # pixels: of the picture, of a frame, of what stands above
NARROWEST = 0.6  # pixels: what is narrower is left out
LETTER = 6.4  # pixels, about

# Whose code a frame is, by the beginning of its module, and its colour.
OWNERS = {
    "sqlmodel_cache": ("the library", "#e07b39"),
    "sqlalchemy": ("SQLAlchemy", "#7aa6c2"),
    "sqlmodel": ("SQLModel", "#a3c586"),
    "redis": ("redis-py", "#c98bb9"),
    "benchmarks": ("the loop that is measured", "#cccccc"),
}
OTHERS = ("the standard library", "#e6d690")


def sample(run: Callable[[int], object], seconds: float) -> Stacks:
    """Return the stacks of a loop that runs for about `seconds`."""
    stacks: Stacks = Counter()
    ours = sys._getframe()

    def note(_: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_globals is globals():
            return  # the sampling itself
        stack: list[str] = []
        while frame is not None and frame is not ours:
            stack.append(f"{_module(frame)} {frame.f_code.co_name}")
            frame = frame.f_back
        stacks[tuple(reversed(stack))] += 1

    before = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
    try:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            run(ROWS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return stacks


def _module(frame: FrameType) -> str:
    """Return the module of a frame. Two generate code that does not say whose it is."""
    name = frame.f_globals.get("__name__")
    return name or ("sqlalchemy" if "sqlalchemy" in frame.f_code.co_filename else "sqlmodel_cache._codec")


def owner(frame: str) -> tuple[str, str]:
    """Return whose code a frame is, and its colour."""
    return OWNERS.get(frame.partition(" ")[0].partition(".")[0], OTHERS)


def shares(stacks: Stacks, key: Callable[[str], str]) -> list[tuple[str, float]]:
    """Return the shares of the samples by what `key` says of the innermost frame, the largest first."""
    counts: Counter[str] = Counter()
    for stack, count in stacks.items():
        if stack:
            counts[key(stack[-1])] += count
    return [(name, count / counts.total()) for name, count in counts.most_common()]


@dataclass
class _Node:
    count: int = 0
    children: dict[str, _Node] = field(default_factory=dict)

    def child(self, frame: str) -> _Node:
        return self.children.setdefault(frame, _Node())

    @property
    def depth(self) -> int:
        return 1 + max((node.depth for node in self.children.values()), default=0)


def _tree(stacks: Stacks) -> _Node:
    root = _Node()
    for stack, count in stacks.items():
        node = root
        node.count += count
        for frame in stack:
            node = node.child(frame)
            node.count += count
    return root


def draw(stacks: Stacks, title: str, target: File) -> None:
    """Write a flame graph: callers below, callees above them, and each as wide as its share of the samples."""
    root = _tree(stacks)
    height = MARGIN + HEIGHT * root.depth + 8
    body = [f'<text x="8" y="20" font-size="14">{escape(title)}</text>', *_legend()]
    body += _frames(root, 0.0, WIDTH / max(1, root.count), height - 8 - HEIGHT, root.count)
    target.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="monospace" font-size="11"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _legend() -> Iterator[str]:
    at = WIDTH - 8.0
    for name, colour in reversed((*OWNERS.values(), OTHERS)):
        at -= 1.1 * LETTER * len(name) + 26
        yield f'<rect x="{at:.0f}" y="10" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{at + 16:.0f}" y="20">{name}</text>'


def _frames(node: _Node, left: float, scale: float, top: int, total: int) -> Iterable[str]:
    for frame, child in sorted(node.children.items()):
        width = child.count * scale
        if width >= NARROWEST:
            yield _frame(frame, left, width, top, child.count / total)
            yield from _frames(child, left, scale, top - HEIGHT, total)
        left += width


def _frame(frame: str, left: float, width: float, top: int, share: float) -> str:
    module, _, name = frame.partition(" ")
    letters = int((width - 6) / LETTER)
    text = f'<text x="{left + 3:.1f}" y="{top + 13}">{escape(name[:letters])}</text>' if letters >= 3 else ""
    return (
        f"<g><title>{escape(f'{module}: {name}')}, {share:.1%}</title>"
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{HEIGHT - 1}" fill="{owner(frame)[1]}"/>{text}</g>'
    )


def profiles(world: World) -> dict[str, Stacks]:
    """Return the stacks of the hit paths, by name."""
    found = {}
    run = get_each(world.sqlite())
    for name, transport in {"in-process": MemoryTransport(), "redis": cached(world.client())}.items():
        SQLModelCache.configure(transport)
        run(ROWS)
        found[name] = sample(run, world.effort.profile_seconds)
        SQLModelCache.reset()
    hundred = hundred_hits(world)
    hundred.before()
    found["tasks"] = sample(lambda count: hundred.run(count // ROWS), world.effort.profile_seconds)
    SQLModelCache.reset()
    return found
