"""Where the promise ends: each exception that the guarantees name is real, and is no wider than they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from protocol.programs import TABLE, unfenced_writer, verifier, writer
from protocol.scenario import Scenario
from protocol.schedules import explore

SOUND: dict[str, Any] = {"deadlines": "sound", "refusals": True}

RESTORES: dict[str, Any] = {"evictions": 1, "restores": True}

# One fault that the protocol does not exclude: linearizability may go, the promise after commit() does not.
SINGLE_FAULTS = {
    "a fence is evicted during COMMIT [H1]": Scenario(**SOUND, evictions=1, evicts_pending=True, promise="acdp"),
    "a table's fence is evicted during COMMIT [H1T]": Scenario(
        **SOUND, writers=(writer(TABLE), writer(TABLE)), evictions=1, evicts_pending=True, promise="acdp"
    ),
    "COMMIT outlives its deadline [H2]": Scenario(deadlines="any", refusals=True, promise="acdp"),
    "a fence is evicted, and END is lost [H5]": Scenario(
        **SOUND, evictions=1, evicts_pending=True, lost=1, promise="acdp"
    ),
    "another server goes on, from an old snapshot or as a replica that lags [H9]": Scenario(
        **SOUND, **RESTORES, promise="acdp"
    ),
    "the same, and END is lost [H9]": Scenario(deadlines="sound", **RESTORES, lost=1, promise="acdp"),
    "the same, for a table [H9]": Scenario(**SOUND, **RESTORES, writers=(writer(TABLE),), promise="acdp"),
    "two servers go on, one after the other": Scenario(**SOUND, evictions=2, restores=True, promise="acdp"),
}

# Two faults, or one that the guarantees except: a stale row stays until its ttl.
EXCEPTIONS = {
    "a fence is evicted, and its writer crashes [H1c]": (
        "p",
        Scenario(**SOUND, evictions=1, evicts_pending=True, crashes=1),
    ),
    "a deadline passes, and its writer crashes [H2c]": ("p", Scenario(deadlines="any", crashes=1)),
    "a fence is evicted, and the outcome is unknown [H5]": (
        "p",
        Scenario(**SOUND, evictions=1, evicts_pending=True, unknown=True),
    ),
    "BEGIN cannot be delivered, COMMIT goes on [H6]": (
        "b",
        Scenario(**SOUND, writers=(writer(refuse=False),), lost=2),
    ),
    "a fence is not on the server that goes on, and its writer crashes [H9c]": (
        "p",
        Scenario(**SOUND, **RESTORES, crashes=1),
    ),
    "a fence is not on the server that goes on, and the outcome is unknown [H9]": (
        "p",
        Scenario(**SOUND, **RESTORES, unknown=True),
    ),
}


def test_verifier_finds_what_was_written_behind_the_protocol() -> None:
    """The same comparison that raises no false alarm sees a row that was changed without a fence."""
    report = explore(Scenario(writers=(unfenced_writer(),), readers=(verifier(),), answers=True, promise="j"), "j")
    print(report.told("j"))
    assert report.traces["j"][-1] == "a verifier says that the cache has v0, and the database v1"


@pytest.mark.parametrize("name", SINGLE_FAULTS)
def test_single_fault_never_shows_a_row_from_before_a_returned_commit(name: str) -> None:
    """A read that begins after commit() has returned is right; the overlap with COMMIT alone may show the old row."""
    report = explore(SINGLE_FAULTS[name])
    assert not report.traces, "\n\n".join(report.told(letter) for letter in report.traces)
    strict = explore(replace(SINGLE_FAULTS[name], promise="b"), until="b")
    assert strict.traces.keys() == {"b"}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exception_is_real(name: str) -> None:
    """What the guarantees except does happen in the model: the explorer can see it."""
    letter, scenario = EXCEPTIONS[name]
    report = explore(scenario, until=letter)
    assert letter in report.traces
    print(f"\n{name}\n{report.told(letter)}")


def test_commit_that_could_not_be_fenced_heals_when_its_debt_is_paid() -> None:
    """In `serve` mode no stale row stays behind once the writer owes nothing, and nothing uncommitted is ever hit."""
    served = Scenario(**SOUND, unknown=True, writers=(writer(refuse=False),), promise="cdp")
    report = explore(replace(served, lost=5))
    assert not report.traces, "\n\n".join(report.told(letter) for letter in report.traces)
    assert report.seen["Begin fails, may be executed later"] > 0
    assert report.states > 5_000


def test_commit_that_could_not_be_fenced_is_refused_in_refuse_mode() -> None:
    """In `refuse` mode the same faults break nothing: the promise holds in full."""
    report = explore(Scenario(**SOUND, unknown=True, writers=(writer(refuse=True),), lost=5))
    assert not report.traces, "\n\n".join(report.told(letter) for letter in report.traces)
    assert report.seen["ROLLBACK"] > 0


def test_fence_that_the_next_server_has_closes_what_is_left() -> None:
    """Where BEGIN is answered when the replica has it, another server may go on, and the writer may crash besides."""
    waits = Scenario(**SOUND, **RESTORES, waits=True, crashes=1, unknown=True)
    report = explore(waits)
    assert not report.traces, "\n\n".join(report.told(letter) for letter in report.traces)
    assert report.seen["the replica is promoted"] > 0
    assert explore(replace(waits, waits=False), until="b").traces.keys() == {"b"}
