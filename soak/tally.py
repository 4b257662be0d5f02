"""What a worker process counts and finds, and how the process that judges hears of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

from soak.ledger import Finding

REPORT_SECONDS = 0.25  # between a worker's reports; one that is killed has lost what it counted since the last

Report = tuple[Counter[str], list[Finding], list[str]]  # what was counted and found, and errors


@dataclass
class Tally:
    """What the lanes of one process have counted and found. `more` is counted elsewhere."""

    more: Callable[[], Counter[str]] = Counter
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def report(self, reported: Counter[str]) -> Report:
        """Return what is new, and add its counts to `reported`."""
        new = Counter(self.counts) + self.more() - reported
        reported.update(new)
        findings, self.findings = self.findings, []
        return new, findings, list(self.errors)

    @contextmanager
    def reporting(self, pipe: Pipe) -> Iterator[None]:
        """Report for as long as the block runs, and once more when it has ended."""
        over = threading.Event()

        def report() -> None:
            reported: Counter[str] = Counter()
            while not over.wait(REPORT_SECONDS):
                pipe.send(self.report(reported))
            pipe.send(self.report(reported))

        reporter = threading.Thread(target=report)
        reporter.start()
        try:
            yield
        finally:
            over.set()
            reporter.join()
            pipe.close()
