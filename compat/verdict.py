"""Compares the outcomes of a suite with and without the library, and holds them against the list of reasons."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compat.suites import Suite

REASONS = Path(__file__).with_name("reasons.toml")


@dataclass(frozen=True)
class Report:
    """What one run of a suite has written: test -> outcome and message, and what the cache has counted."""

    tests: dict[str, tuple[str, str]]
    counts: dict[str, int]

    @classmethod
    def read(cls, file: Path) -> Report:
        """Return the report in a file of `compat.outcomes`."""
        written: Any = json.loads(file.read_text())
        return cls(
            {name: (outcome, message) for name, (outcome, message) in written["tests"].items()}, written["counts"]
        )

    @property
    def failed(self) -> set[str]:
        """The tests that failed."""
        return {name for name, (outcome, _) in self.tests.items() if outcome == "failed"}

    @property
    def passed(self) -> set[str]:
        """The tests that passed; others were skipped."""
        return {name for name, (outcome, _) in self.tests.items() if outcome == "passed"}


@dataclass(frozen=True)
class Reason:
    """Why some tests may fail with the library. A test without its parameters stands for all of its cases."""

    why: str
    message: str  # what the failure says: any other failure of the test is not explained
    tests: frozenset[str]
    modes: frozenset[str]  # in which they fail; empty for all
    lines: frozenset[str]  # of SQLAlchemy, in which they fail; empty for all
    suites: frozenset[str]


def reasons(suite: Suite, mode: str) -> list[Reason]:
    """Return the reasons that are meant for a suite in a mode."""
    written: Any = tomllib.loads(REASONS.read_text())
    found = []
    for entry in written.get("reason", ()):
        names = {key: frozenset(entry.get(key, ())) for key in ("tests", "modes", "lines", "suites")}
        asked = {"modes": mode, "lines": suite.line, "suites": suite.name}
        if all(not names[key] or asked[key] in names[key] for key in asked):
            found.append(Reason(entry["why"], entry["message"], **names))
    return found


@dataclass(frozen=True)
class Verdict:
    """What a mode did to a suite."""

    suite: Suite
    mode: str
    tests: int
    failed_without: int
    failed: int
    counts: dict[str, int]
    explained: dict[str, str] = field(default_factory=dict)  # test -> reason
    unexplained: dict[str, str] = field(default_factory=dict)  # test -> message
    needless: tuple[str, ...] = ()  # what the list of reasons names, and does not fail
    missing: tuple[str, ...] = ()  # tests that ran without the library, and not with it

    @property
    def good(self) -> bool:
        """Whether the library did no harm, and had the chance to."""
        return not (self.unexplained or self.needless or self.missing) and self.proves

    @property
    def proves(self) -> bool:
        """Whether the cache was used. Most tests get a row once: without warming, a fill is all that they can show."""
        return self.counts.get("hits" if self.mode == "warm" else "fills", 0) > 0


def judge(suite: Suite, mode: str, without: Report, with_: Report) -> Verdict:
    """Return the verdict of a run with the library, given the run without."""
    explained: dict[str, str] = {}
    needless: list[str] = []
    new = with_.failed - without.failed
    for reason in reasons(suite, mode):
        for name in sorted(reason.tests):
            cases = [test for test in new if test == name or test.startswith(f"{name}[")]
            cases = [test for test in cases if reason.message in with_.tests[test][1]]
            explained.update(dict.fromkeys(cases, reason.why))
            ran = suite.covers(name)
            if ran and not cases and name not in without.failed:
                needless.append(name)
    return Verdict(
        suite,
        mode,
        len(with_.tests),
        len(without.failed),
        len(with_.failed),
        with_.counts,
        explained,
        {name: with_.tests[name][1] for name in sorted(new - explained.keys())},
        tuple(needless),
        tuple(sorted(without.passed - with_.passed - with_.failed)),
    )


def table(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """Return the lines of a table in Markdown."""
    yield "| suite | release | mode | tests | failed without | failed with | with a reason | hits | misses | fills |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for v in verdicts:
        counts = " | ".join(f"{v.counts.get(name, 0):,}" for name in ("hits", "misses", "fills"))
        release = v.suite.release + ("" if v.suite.package == "sqlalchemy" else f", SQLAlchemy {v.suite.line}")
        yield (
            f"| {v.suite.name} | {release} | {v.mode} | {v.tests:,} | {v.failed_without:,} | {v.failed:,} "
            f"| {len(v.explained):,} | {counts} |"
        )


def complaints(verdict: Verdict) -> Iterator[str]:
    """Return what is wrong with a run, in lines."""
    where = f"{verdict.suite.name}, {verdict.mode}"
    for name, message in verdict.unexplained.items():
        yield f"{where}: {name} fails with the library only:"
        yield from (f"    {line}" for line in message.strip().splitlines()[-8:])
    yield from (f"{where}: {name} has a reason and does not fail" for name in verdict.needless)
    yield from (f"{where}: {name} did not run with the library" for name in verdict.missing)
    if not verdict.proves:
        yield f"{where}: the cache was not used, which proves nothing"
