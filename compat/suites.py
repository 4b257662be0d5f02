"""The suites: where their tests are, and in which modes they run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from compat.outcomes import FILE
from compat.plugin import TRANSPORT, WARM

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = "without"


@dataclass(frozen=True)
class Suite:
    """One of upstream's suites on one database."""

    name: str
    package: str
    tests: tuple[str, ...]
    modes: tuple[str, ...]  # besides WITHOUT
    arguments: tuple[str, ...] = ()
    servers: frozenset[str] = field(default_factory=frozenset)  # that the arguments or the modes name

    @property
    def release(self) -> str:
        """The package and its installed version."""
        return f"{self.package} {version(self.package)}"

    @property
    def line(self) -> str:
        """The SQLAlchemy line under test, as in "2.1"."""
        return ".".join(version("sqlalchemy").split(".")[:2])

    def covers(self, test: str) -> bool:
        """Return whether a test is among the suite's."""
        path = PurePosixPath(test.partition("::")[0])
        return any(path.is_relative_to(each.partition("::")[0]) for each in self.tests)


SQLALCHEMY = ("--maxfail=99999", "--tb=short")
SUITES = (
    Suite(
        "sqlmodel",
        "sqlmodel",
        ("tests",),
        ("memory", "redis", "warm"),
        servers=frozenset({"redis"}),
    ),
    Suite(
        "sqlalchemy",
        "sqlalchemy",
        ("test/orm", "test/ext"),
        ("memory", "warm"),
        (*SQLALCHEMY, "--db", "sqlite_file"),
    ),
    Suite(
        "sqlalchemy-aiosqlite",
        "sqlalchemy",
        ("test/ext/asyncio",),
        ("memory", "warm"),
        (*SQLALCHEMY, "--db", "aiosqlite_file"),
    ),
    Suite(
        "sqlalchemy-postgresql",
        "sqlalchemy",
        (
            "test/orm/test_session.py",
            "test/orm/test_transaction.py",
            "test/orm/test_unitofwork.py",
            "test/orm/test_unitofworkv2.py",
            "test/orm/test_naturalpks.py",
            "test/orm/test_versioning.py",
            "test/orm/test_defaults.py",
            "test/orm/test_expire.py",
            "test/orm/test_cascade.py",
        ),
        ("memory", "warm"),
        (*SQLALCHEMY, "--dburi", "{postgresql}"),
        servers=frozenset({"postgresql"}),
    ),
)


def run(suite: Suite, mode: str, source: Path, report: Path, processes: int, urls: Mapping[str, str]) -> None:
    """Run a suite once; its outcomes and counts go to the file `report`."""
    report.unlink(missing_ok=True)
    environment = {**os.environ, FILE: str(report), "PYTHONNOUSERSITE": "1"}  # or SQLAlchemy's suite tests ./lib
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["PYTHONPATH"] = os.pathsep.join([str(source), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(processes)]
    command += ["-p", "compat.outcomes", "--rootdir", str(source)]
    if mode != WITHOUT:
        command += ["-p", "compat.plugin"]
        environment[TRANSPORT] = urls["redis"] if mode == "redis" else "memory"
        environment[WARM] = "1" if mode == "warm" else ""
    command += [*suite.tests, *(argument.format_map(urls) for argument in suite.arguments)]
    with report.with_suffix(".log").open("w") as log:
        subprocess.run(command, cwd=source, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if not report.exists():
        raise RuntimeError(f"{suite.name} did not run; see {report.with_suffix('.log')}")
