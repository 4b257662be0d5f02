"""The promise holds in every order of every step of the project's own plans, whatever single faults strike."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from protocol.programs import (
    ANOTHER_ROW,
    CORRUPT,
    FINGERPRINT,
    NOTHING,
    OTHER_RELEASE,
    ROW,
    TABLE,
    Keys,
    finder,
    keeper,
    own_load,
    reader,
    reader_of_many,
    remembering_reader,
    renewing_reader,
    snapshot_reader,
    verifier,
    waiting_reader,
    writer,
)
from protocol.scenario import Scenario
from protocol.schedules import explore

from sqlmodel_cache._effects import ABSENT

LONG = os.environ.get("SQLMODEL_CACHE_LONG") == "1"

BOTH = Keys(ROW.rows, TABLE.tables)
ONE_READER = (reader(),)
TWO_READERS = ONE_READER * 2

QUIET = Scenario()
ANSWERS = Scenario(answers=True)
AFTERWARDS = Scenario(evictions=1, restores=True, deadlines="sound", refusals=True, promise="acdjp")
LIVES = Scenario(lost=1, evictions=1, deadlines="sound", refusals=True, promise="acdjp")
FAULTS = Scenario(crashes=1, evictions=1, deadlines="sound", refusals=True, unknown=True)

# name -> (scenario, what the long profile changes, floor of states that the short profile visits)
SCENARIOS: dict[str, tuple[Scenario, dict[str, object], int]] = {
    "two row writers, two readers": (
        replace(QUIET, writers=(writer(), writer()), readers=TWO_READERS),
        {"readers": ONE_READER * 3, "refusals": True},
        1_500,
    ),
    "two row writers, two readers, crash": (
        replace(QUIET, writers=(writer(), writer()), readers=TWO_READERS, crashes=1, deadlines="sound"),
        {"crashes": 2, "evictions": 2, "refusals": True, "unknown": True},
        5_000,
    ),
    "two row writers, two readers, every fault": (
        replace(FAULTS, writers=(writer(), writer()), readers=TWO_READERS),
        {"lost": 1},
        100_000,
    ),
    "two row writers, lost replies and late commands": (
        replace(QUIET, writers=(writer(), writer()), lost=1, deadlines="sound"),
        {"lost": 2, "crashes": 1},
        3_000,
    ),
    "one row writer, every fault, lost replies until it gives up": (
        replace(FAULTS, lost=2),
        {"lost": 3, "evictions": 2},
        5_000,
    ),
    "row writer and table writer, every fault": (
        replace(FAULTS, writers=(writer(), writer(TABLE))),
        {"lost": 1},
        15_000,
    ),
    "two table writers": (
        replace(FAULTS, writers=(writer(TABLE), writer(TABLE)), unknown=False, crashes=0),
        {"lost": 1, "crashes": 1, "unknown": True},
        3_000,
    ),
    "table writer, and table writer of other rows": (
        replace(FAULTS, writers=(writer(TABLE), writer(TABLE, touches=False)), crashes=0),
        {"lost": 1, "crashes": 1},
        5_000,
    ),
    "row and table in one transaction": (
        replace(FAULTS, writers=(writer(BOTH),), lost=1),
        {"writers": (writer(BOTH), writer())},
        5_000,
    ),
    "reader in a snapshot from before": (
        replace(FAULTS, readers=(snapshot_reader(), *ONE_READER)),
        {"writers": (writer(), writer())},
        5_000,
    ),
    "reader in a snapshot from before, that knows the version": (
        replace(FAULTS, readers=(remembering_reader(), *ONE_READER), unknown=False),
        {"writers": (writer(), writer(TABLE))},
        10_000,
    ),
    "missing row that an INSERT makes": (
        replace(FAULTS, warm=None, row_exists=False, readers=TWO_READERS),
        {"writers": (writer(), writer())},
        2_000,
    ),
    "missing row, cached as missing, that an INSERT makes": (
        replace(FAULTS, warm=ABSENT, row_exists=False, caches_missing=True, readers=TWO_READERS),
        {"writers": (writer(), writer())},
        3_000,
    ),
    "row that outsiders have deleted, and an INSERT makes again": (
        replace(LIVES, writers=(writer(NOTHING, new=ROW),), readers=TWO_READERS),
        {"lost": 2, "evictions": 2, "readers": ONE_READER * 3},
        3_000,
    ),
    "row that outsiders have deleted, and an INSERT makes again beside a change": (
        replace(LIVES, writers=(writer(ANOTHER_ROW, new=ROW),), readers=TWO_READERS),
        {"lost": 2, "evictions": 2, "readers": ONE_READER * 3},
        3_000,
    ),
    "writer that reads its own row": (
        replace(FAULTS, writers=(writer(before=own_load), writer()), evictions=0),
        {"evictions": 1},
        5_000,
    ),
    "transaction that is tried again": (
        replace(FAULTS, writers=(writer(retries=1),), lost=1),
        {"writers": (writer(retries=1), writer())},
        5_000,
    ),
    "payload that is not a row": (
        replace(FAULTS, warm=CORRUPT, readers=TWO_READERS),
        {"lost": 1},
        5_000,
    ),
    "two releases side by side": (
        replace(
            FAULTS, readers=(reader(), reader(fingerprint=OTHER_RELEASE)), fingerprints=(FINGERPRINT, OTHER_RELEASE)
        ),
        {"writers": (writer(), writer())},
        5_000,
    ),
    "three readers of one process that join each other": (
        replace(ANSWERS, together=True, readers=(waiting_reader(),) * 3),
        {"readers": (waiting_reader(),) * 4},
        40_000,
    ),
    "two readers of one process that join each other, every fault": (
        replace(FAULTS, answers=True, together=True, readers=(waiting_reader(),) * 2),
        {"lost": 1},
        30_000,
    ),
    "readers of two processes that wait for the elected one, every fault": (
        replace(FAULTS, answers=True, readers=(waiting_reader(),) * 2),
        {"lost": 1},
        20_000,
    ),
    "readers that wait for a row which does not exist, every fault": (
        replace(FAULTS, answers=True, warm=None, row_exists=False, readers=(waiting_reader(),) * 2),
        {"lost": 1},
        5_000,
    ),
    "reader that renews what it hits, every fault": (
        replace(FAULTS, answers=True, readers=(renewing_reader(), reader())),
        {"readers": (renewing_reader(), renewing_reader(), reader())},
        5_000,
    ),
    "another server goes on, without the last writes": (
        replace(AFTERWARDS, readers=TWO_READERS),
        {"writers": (writer(), writer(TABLE)), "crashes": 0},
        5_000,
    ),
    "another server goes on, two releases side by side": (
        replace(
            AFTERWARDS,
            readers=(reader(), reader(fingerprint=OTHER_RELEASE)),
            fingerprints=(FINGERPRINT, OTHER_RELEASE),
            refusals=False,
        ),
        {"refusals": True},
        5_000,
    ),
    "another server goes on, and a reader knows a version from before": (
        replace(AFTERWARDS, readers=(remembering_reader(),)),
        {"readers": (remembering_reader(), reader())},
        1_000,
    ),
    "reader of many rows, every fault": (
        replace(FAULTS, answers=True, readers=(reader_of_many(), reader())),
        {"readers": (reader_of_many(), reader_of_many(), reader())},
        5_000,
    ),
    "verifier, two writers and a reader": (
        replace(ANSWERS, writers=(writer(), writer(TABLE)), readers=(verifier(), reader())),
        {"readers": (verifier(), reader(), reader())},
        4_000,
    ),
    "verifier, every fault": (
        replace(FAULTS, answers=True, readers=(verifier(), reader())),
        {"lost": 1, "writers": (writer(), writer())},
        4_000,
    ),
    "verifier, lost replies and late commands": (
        replace(ANSWERS, lost=1, deadlines="sound", readers=(verifier(), reader())),
        {"lost": 2, "crashes": 1},
        1_000,
    ),
    "verifier of a row that an INSERT makes": (
        replace(
            FAULTS, answers=True, warm=ABSENT, row_exists=False, caches_missing=True, readers=(verifier(), reader())
        ),
        {"writers": (writer(), writer())},
        1_000,
    ),
    "keeper that delivers what it owes around a commit of the row, every fault": (
        replace(FAULTS, writers=(writer(), keeper())),
        {"lost": 2, "readers": TWO_READERS},
        4_000,
    ),
    "keeper that delivers a table around a commit of the row, lost replies": (
        replace(QUIET, writers=(writer(), keeper(BOTH)), lost=1, deadlines="sound"),
        {"lost": 2, "crashes": 1, "unknown": True},
        10_000,
    ),
    "reader by a unique key, two writers": (
        replace(ANSWERS, writers=(writer(), writer()), readers=(finder(), reader())),
        {"readers": (finder(), finder(), reader())},
        10_000,
    ),
    "reader by a unique key, every fault": (
        replace(FAULTS, answers=True, readers=(finder(), reader())),
        {"writers": (writer(), writer())},
        10_000,
    ),
}


def test_explorer_reaches_what_it_is_about() -> None:
    """The proof is not vacuous: every reply, every fault and every kind of fill is reached."""
    scenarios = (
        replace(FAULTS, lost=1),
        replace(QUIET, readers=TWO_READERS),
        replace(QUIET, readers=(snapshot_reader(),)),
        replace(ANSWERS, together=True, readers=(waiting_reader(),) * 2),
        replace(ANSWERS, readers=(waiting_reader(),) * 2, deadlines="sound"),
        replace(ANSWERS, warm=None, row_exists=False, readers=(waiting_reader(),)),
        replace(ANSWERS, readers=(renewing_reader(),)),
        replace(ANSWERS, readers=(reader_of_many(), finder())),
        replace(QUIET, evictions=1, restores=True),
    )
    seen = sum((explore(scenario).seen for scenario in scenarios), Counter[str]())
    for event in (
        "Lookup: miss",
        "Lookup: hit, v0",
        "Lookup: hit, v1",
        "Lease: granted",
        "Lease: fenced",
        "Lease: hit, v1",
        "takes a snapshot: v0",
        "Fill: v0 accepted",
        "Fill: v1 accepted",
        "Fill: v0 refused",
        "Fill: v1 refused",
        "crashes",
        "the application rolls back",
        "the database refuses COMMIT",
        "the connection is lost during COMMIT",
        "the database rolls back for a dead client",
        "COMMIT takes effect: v1 is current",
        "Begin fails, may be executed later",
        "End fails, may be executed later",
        "Lease fails, may be executed later",
        "Fill fails, may be executed later",
        "late Begin is executed: done",
        "late End is executed: done",
        "late Lease is executed: granted",
        "late Fill is executed: v0 accepted",
        "late Fill is executed: v0 refused",
        "R is evicted",
        "T is evicted",
        "the deadline of W1.1 passes on R",
        "leads",
        "joins",
        "stops waiting",
        "departs",
        "lands",
        "waits",
        "Resign: done",
        "the time of the elected one passes",
        "the replica catches up",
        "the replica is promoted",
        "Lease: granted, Lease: granted",
    ):
        assert seen[event] > 0, event


def test_known_version_lets_an_old_snapshot_fill() -> None:
    """A reader in a snapshot fills when it saw the lease's version before, and only then."""
    remembering = explore(Scenario(writers=(), readers=(remembering_reader(),), warm=None))
    assert remembering.seen["Fill: v0 accepted"] > 0
    forgetful = explore(Scenario(writers=(), readers=(snapshot_reader(),), warm=None))
    assert forgetful.seen["SELECT: v0"] > 0
    assert forgetful.seen["Fill: v0 accepted"] == 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_promise_holds_in_every_schedule(name: str, record_property: pytest.RecordProperty) -> None:
    """No schedule gives a stale or uncommitted hit, leaves a stale row, or leaves the row without a way back."""
    scenario, longer, floor = SCENARIOS[name]
    report = explore(replace(scenario, **longer) if LONG else scenario)  # type: ignore[arg-type]
    record_property("states", report.states)
    record_property("schedules", report.schedules)
    print(f"{name}: {report.states:,} states, {report.steps:,} steps, {report.schedules:,} schedules")
    assert not report.traces, "\n\n".join(f"{letter}:\n{report.told(letter)}" for letter in report.traces)
    assert report.states >= floor
    assert report.schedules > report.states
