"""The lines of the table: what a path should reach, and what it has reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.measure import Race, Ratio


@dataclass(frozen=True)
class Goal:
    """One figure of a line. With a limit it is met or missed, without one it is only stated."""

    unit: str  # what is counted: "x floor", "gets/s per core"
    value: float
    limit: float | None = None
    at_least: bool = False
    quartiles: tuple[float, float] | None = None

    @property
    def met(self) -> bool:
        """Whether the value is within the limit, if there is one."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def target(self) -> str:
        """The limit, in words."""
        return "" if self.limit is None else f"{'≥' if self.at_least else '≤'} {number(self.limit)} {self.unit}"

    @property
    def reached(self) -> str:
        """The value, in words."""
        return f"{number(self.value)} {self.unit}"

    @property
    def spread(self) -> str:
        """The quartiles of the rounds, in words."""
        return "" if self.quartiles is None else f"({number(self.quartiles[0])} to {number(self.quartiles[1])})"


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    path: str
    measured: str
    goals: tuple[Goal, ...] = ()
    floor: str = ""
    floor_is: str = ""  # what the floor does

    @property
    def verdict(self) -> str:
        """Whether every target is met; nothing where there is none."""
        if all(goal.limit is None for goal in self.goals):
            return ""
        return "yes" if all(goal.met for goal in self.goals) else "**no**"

    @property
    def missed(self) -> bool:
        """Whether a target is missed."""
        return not all(goal.met for goal in self.goals)


def number(value: float) -> str:
    """Return a number with as many digits as say something."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def time_of(us: float) -> str:
    """Return a time, given in microseconds, with its unit."""
    return f"{number(us)} µs" if us < 10_000 else f"{number(us / 1000)} ms"


def times(unit: str, ratio: Ratio, limit: float | None = None, *, at_least: bool = False) -> Goal:
    """Return the goal that a ratio of a race is."""
    return Goal(unit, ratio.median, limit, at_least, (ratio.low, ratio.high))


def raced(path: str, found: Race, floor_is: str, limit: float | None, *more: Goal, unit: str = "x floor") -> Line:
    """Return the line of a race of `measured` against `floor`."""
    goals = (times(unit, found.ratio("measured", "floor"), limit), *more)
    return Line(path, time_of(found.us("measured")), goals, time_of(found.us("floor")), floor_is)


def header() -> str:
    """Return the head of the table, as it is printed."""
    return f"{'path':<44} {'measured':>14} {'floor':>14}  reached, with the rounds' quartiles, and target"


def printed(line: Line) -> Iterator[str]:
    """Return a line as it is printed: the figures below each other."""
    left = f"{line.path:<44} {line.measured:>14} {line.floor:>14}"
    for goal in line.goals or (None,):
        words = [] if goal is None else [goal.reached, goal.spread, goal.target, "" if goal.met else "MISSED"]
        yield f"{left}  {'  '.join(filter(None, words))}".rstrip()
        left = " " * len(left)
