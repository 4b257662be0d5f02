"""The command line: `python -m compat`, in an environment that has what compat/requirements.txt asks for."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the servers that the tests start


def main() -> int:
    """Run the suites, print what failed and a table, and return 0 when the library made no difference."""
    from compat.sources import unpack
    from compat.suites import SUITES, WITHOUT, run
    from compat.verdict import Report, complaints, judge, table

    parser = argparse.ArgumentParser(prog="compat", description="Upstream's own suites, with every class cached.")
    parser.add_argument("--suite", action="append", choices=[suite.name for suite in SUITES], help="all, if not given")
    parser.add_argument("--mode", action="append", choices=("memory", "redis", "warm"), help="all, if not given")
    parser.add_argument("--only", action="append", metavar="PATH", help="tests of that suite, instead of all of them")
    parser.add_argument("--processes", type=int, default=2, help="of pytest-xdist")
    parser.add_argument("--judge", action="store_true", help="only judge the reports that exist: run nothing")
    options = parser.parse_args()
    suites = [suite for suite in SUITES if not options.suite or suite.name in options.suite]
    if options.only:
        suites = [dataclasses.replace(suite, tests=tuple(options.only)) for suite in suites]
    verdicts = []
    with contextlib.ExitStack() as stack:
        urls: dict[str, str] = {}
        wanted = {name for suite in suites for name in suite.servers}
        for name in sorted(set() if options.judge else wanted):
            urls[name] = stack.enter_context(_server(name))
        for suite in suites:
            folder = ROOT / "build" / "compat"
            source = unpack(suite.package, folder)
            modes = [mode for mode in suite.modes if not options.mode or mode in options.mode]
            reports = {mode: folder / f"{suite.name}-{suite.line}-{mode}.json" for mode in (WITHOUT, *modes)}
            for mode, report in reports.items():
                if not options.judge:
                    print(f"{suite.name} of {suite.release}, {mode} ...", flush=True)
                    run(suite, mode, source, report, options.processes, urls)
            without = Report.read(reports[WITHOUT])
            for mode in modes:
                verdict = judge(suite, mode, without, Report.read(reports[mode]))
                verdicts.append(verdict)
                print("\n".join(complaints(verdict)), flush=True)
    print("\n".join(table(verdicts)))
    return 0 if all(verdict.good for verdict in verdicts) else 1


@contextlib.contextmanager
def _server(name: str) -> Iterator[str]:
    import servers

    if name == "redis":
        with servers.redis_url() as url:
            yield url
    else:
        with servers.postgres_url() as url:
            yield _prepared(url)


def _prepared(url: str) -> str:
    """Make what SQLAlchemy's suite wants to find, and return the URL with its driver."""
    import psycopg
    from sqlalchemy import make_url

    with psycopg.connect(url, autocommit=True) as connection:
        for schema in ("test_schema", "test_schema_2"):
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        for number, extension in enumerate(("hstore", "citext")):
            try:
                connection.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
            except psycopg.errors.FeatureNotSupported:
                # A server from a wheel has no such extension, and none of these tests uses it. But the suite creates
                # it unless it exists: so let there be one of that name, with nothing in it.
                connection.execute(
                    "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) "
                    f"VALUES ({16000 + number}, '{extension}', 10, 2200, false, '0')"
                )
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


if __name__ == "__main__":
    sys.exit(main())
