"""An object from a hit cannot be told from one that a SELECT loaded, whatever happens to it afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from parity import zoo_declarative, zoo_sqlmodel
from parity.aftermath import AFTERMATHS, garbage
from parity.case import Case
from parity.conftest import ZOO
from parity.runner import Databases, Scenario, World, compare
from sqlalchemy.orm import Session
from sqlmodel import Session as SQLModelSession

CASES = [case for zoo in ZOO for case in zoo.CASES]
CALLS = [zoo_sqlmodel.CALLS, zoo_declarative.CALLS]


def _scenario(
    case: Case, name: str, *, session: type[Session] = Session, events: bool = False, **options: Any
) -> Scenario:
    then = AFTERMATHS[name]

    def scenario(world: World) -> None:
        world.warm(case.model, case.ident)
        for calls in CALLS:
            calls.clear()
        if events:
            world.record_events(case.model)
        with session(world.engine, **options) as held:
            obj = world.get(held, case.model, case.ident, case.kind)
            world.see("called", CALLS)
            world.look("got", obj)
            then(world, held, obj, case)
        world.see("called", CALLS)

    scenario.__name__ = (
        f"{case} {name} {'events' * events} {session.__name__ * (session is not Session)} {options or ''}"
    )
    return scenario


@pytest.mark.parametrize("case", CASES, ids=str)
def test_object(case: Case, databases: Databases) -> None:
    """Whatever is done to it, and in what order events are fired."""
    names = AFTERMATHS if case.kind != "refused" else ["read_all", "flush", "delete_and_commit"]
    observed = ("nothing", "flush", "delete_and_commit", "expunge") if case.kind == "hit" else ()
    compare(
        databases,
        *(_scenario(case, name) for name in names),
        *(_scenario(case, name, events=True) for name in observed),
        garbage(case),
    )


@pytest.mark.parametrize("case", [case for case in CASES if case.kind == "hit"][::5], ids=str)
def test_session_options(case: Case, databases: Databases) -> None:
    """Whatever the session was told."""
    compare(
        databases,
        *(
            _scenario(case, name, **options)
            for options in ({"expire_on_commit": False}, {"autoflush": False}, {"session": SQLModelSession})
            for name in ("commit", "flush", "rollback", "get_again", "savepoint")
        ),
    )


def test_zoo_is_complete() -> None:
    """Hits and gets by rule are both in it."""
    kinds = [case.kind for case in CASES]
    assert kinds.count("hit") > 40
    assert kinds.count("refused") > 10
