"""Running plans: replies sent, errors thrown in, and plans that are closed half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sqlmodel_cache._effects import (
    Begin,
    Commit,
    Depart,
    End,
    Fill,
    Join,
    Land,
    Lease,
    Load,
    LoadMany,
    Locate,
    Lookup,
    Peek,
    Resign,
    Together,
    Wait,
)
from sqlmodel_cache._plan import Effect, Plan, perform, run


@dataclass(frozen=True, slots=True)
class Ask(Effect[int]):
    """A round trip of the test."""

    number: int


def answer(effect: Effect[Any]) -> int:
    """Return ten times what was asked."""
    assert isinstance(effect, Ask)
    return effect.number * 10


def failing_at(number: int, error: BaseException) -> Callable[[Effect[Any]], int]:
    """Return an executor that raises at one question."""

    def execute(effect: Effect[Any]) -> int:
        assert isinstance(effect, Ask)
        if effect.number == number:
            raise error
        return answer(effect)

    return execute


def asks(*numbers: int) -> Plan[list[int]]:
    """Ask them all, and return the replies."""
    replies: list[int] = []
    for number in numbers:
        replies += [(yield from perform(Ask(number)))]
    return replies


def recovers() -> Plan[str]:
    """Ask 1, then 2, or 3 if the reply to 1 is an error."""
    try:
        yield from perform(Ask(1))
    except LookupError as error:
        reply = yield from perform(Ask(3))
        return f"{error.args[0]} {reply}"
    return str((yield from perform(Ask(2))))


def test_perform_returns_the_reply() -> None:
    """`perform` yields its effect once, and returns what is sent."""
    plan = perform(Ask(7))
    assert next(plan) == Ask(7)
    with pytest.raises(StopIteration) as stopped:
        plan.send("reply")
    assert stopped.value.value == "reply"


def test_run_sends_replies_in_order() -> None:
    """Each effect is executed once, in the plan's order, and its reply is what the plan goes on with."""
    asked: list[Effect[Any]] = []

    def execute(effect: Effect[Any]) -> int:
        asked.append(effect)
        return answer(effect)

    assert run(asks(1, 2, 3), execute) == [10, 20, 30]
    assert asked == [Ask(1), Ask(2), Ask(3)]


def test_run_of_a_plan_without_effects_executes_nothing() -> None:
    """A plan may decide everything itself."""
    assert run(asks(), lambda effect: pytest.fail("executed")) == []


def test_error_is_thrown_into_the_plan_which_recovers() -> None:
    """An `Exception` of the executor arrives where the plan stands."""
    assert run(recovers(), failing_at(1, LookupError("lost"))) == "lost 30"
    assert run(recovers(), answer) == "20"


def test_error_that_the_plan_does_not_catch_propagates_unchanged() -> None:
    """The caller gets the very exception, and the plan is closed."""
    error = ValueError("wrong")
    plan = recovers()
    with pytest.raises(ValueError, match="wrong") as raised:
        run(plan, failing_at(1, error))
    assert raised.value is error
    assert plan.gi_frame is None  # type: ignore[attr-defined]


def test_error_while_the_plan_recovers_propagates() -> None:
    """Recovery may itself fail."""
    errors = {1: LookupError("lost"), 3: OSError("down")}

    def execute(effect: Effect[Any]) -> int:
        assert isinstance(effect, Ask)
        raise errors[effect.number]

    with pytest.raises(OSError, match="down"):
        run(recovers(), execute)


def test_error_of_the_plan_itself_propagates() -> None:
    """A plan raises to its caller; nothing is executed after that."""

    def plan() -> Plan[None]:
        yield from perform(Ask(1))
        raise KeyError("decided")

    with pytest.raises(KeyError, match="decided"):
        run(plan(), answer)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_exit_closes_the_plan_where_it_stands(kind: type[BaseException]) -> None:
    """What is not an `Exception` is not thrown in: the plan is abandoned, and asks nothing more."""
    seen: list[str] = []

    def plan() -> Plan[None]:
        try:
            yield from perform(Ask(1))
            yield from perform(Ask(2))
        except Exception:
            seen.append("recovered")
        except GeneratorExit:
            seen.append("closed")
            raise

    with pytest.raises(kind):
        run(plan(), failing_at(2, kind()))
    assert seen == ["closed"]


def test_stop_iteration_of_the_executor_does_not_end_the_run() -> None:
    """A StopIteration from an executor is an error like any other, not the plan's result."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        run(asks(1), failing_at(1, StopIteration("reply")))


def test_plan_that_is_not_run_executes_nothing() -> None:
    """Making and closing a plan has no effect."""
    plan = asks(1)
    plan.close()
    with pytest.raises(StopIteration):
        next(plan)


def test_alphabet_is_complete() -> None:
    """Every effect of the library is one of these: an executor that knows them all has forgotten none."""
    ours = {effect for effect in Effect.__subclasses__() if effect.__module__.startswith("sqlmodel_cache._")}
    assert {effect.__name__ for effect in ours} == {
        effect.__name__
        for effect in (
            *(Lookup, Lease, Fill, Peek, Resign, Begin, End, Together),
            *(Load, LoadMany, Locate, Commit),
            *(Join, Depart, Land, Wait),
        )
    }
