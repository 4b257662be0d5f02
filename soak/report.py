"""The report: figures first, then what is wrong."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from soak.ledger import LATE
from soak.run import Result

EXAMPLES = 10  # of findings that are printed


def describe(result: Result, mode: str, seed: int) -> str:
    """Return the report as text."""
    return "\n".join(_lines(result, mode, seed))


def _lines(result: Result, mode: str, seed: int) -> Iterator[str]:
    counts = result.counts
    looked = counts["hits"] + counts["misses"]
    yield f"{mode} mode, seed {seed}, {result.seconds:.0f} s"
    yield f"reads                {counts['reads']:>10,}"
    yield f"hit ratio            {counts['hits'] / max(1, looked):>10.1%}"
    yield f"writes               {counts['writes']:>10,}"
    yield f"rolled back          {counts['rolled back']:>10,}"
    yield f"refused              {counts['refused']:>10,}"
    for name, count in sorted(result.faults.items()):
        yield f"{name:<20} {count:>10,}"
    if result.lags:
        yield from _others(result)
    yield f"stale reads          {result.stale:>10,}"
    yield f"phantom reads        {result.phantom:>10,}"
    yield f"permanent stale rows {len(result.permanently_stale):>10,}"
    yield f"longest staleness    {result.longest_staleness_ms:>7,.0f} ms"
    for finding in [each for each in result.findings if each.kind != LATE][:EXAMPLES]:
        yield (
            f"  {finding.kind}: row {finding.pk} at version {finding.version}, at least {finding.floor} was due, "
            f"at {finding.at:.3f}"
        )
    if result.wrong:
        yield from (f"  {name}: from {began:.3f} to {ended:.3f}" for name, began, ended in result.moments)
    yield from (f"  permanently stale: {row}" for row in list(result.permanently_stale.values())[:EXAMPLES])
    if result.never_hit:
        yield f"  not cached by two quiet reads: rows {result.never_hit}"
    yield from result.errors


def _others(result: Result) -> Iterator[str]:
    ranks = statistics.quantiles([*result.lags, *result.lags], n=100)
    yield f"writes of others     {result.counts['outside writes']:>10,}"
    yield f"reads within the lag {result.counts[LATE]:>10,}"
    yield f"latest of them       {result.latest_ms:>7,.0f} ms"
    yield f"median lag           {ranks[49] * 1000:>7,.0f} ms"
    yield f"ninth decile of lag  {ranks[89] * 1000:>7,.0f} ms"
    yield f"longest lag          {max(result.lags) * 1000:>7,.0f} ms"
