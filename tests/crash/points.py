"""The points of a commit, in order, and a transport and an engine that stop at one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.util.concurrency import greenlet_spawn

from sqlmodel_cache._plan import Effect

POINTS = (
    "before BEGIN",
    "after BEGIN",
    "before COMMIT",
    "inside COMMIT",  # the database has committed, and its reply has not arrived
    "before END",
    "after END",
)
FENCED = POINTS[1:5]  # at these the row's fence is set
COMMITTED = POINTS[3:]  # at these the database has the new row

Reach = Callable[[str], None]


def watched(transport: Any, reach: Reach) -> Any:
    """Make a transport call `reach` before and after each effect, and return it."""
    if hasattr(transport, "execute"):
        transport.execute = _sync(transport.execute, reach)
    if hasattr(transport, "aexecute"):
        transport.aexecute = _async(transport.aexecute, reach)
    return transport


def _sync(original: Callable[[Effect[Any]], Any], reach: Reach) -> Callable[[Effect[Any]], Any]:
    def execute(effect: Effect[Any]) -> Any:
        reach(f"before {_name(effect)}")
        reply = original(effect)
        reach(f"after {_name(effect)}")
        return reply

    return execute


def _async(original: Callable[[Effect[Any]], Any], reach: Reach) -> Callable[[Effect[Any]], Any]:
    async def aexecute(effect: Effect[Any]) -> Any:
        await greenlet_spawn(reach, f"before {_name(effect)}")  # `reach` may use an asyncio engine
        reply = await original(effect)
        await greenlet_spawn(reach, f"after {_name(effect)}")
        return reply

    return aexecute


def _name(effect: Effect[Any]) -> str:
    return type(effect).__name__.upper()


def watch_commit(engine: Engine, reach: Reach) -> None:
    """Make an engine call `reach` before the database's COMMIT and before its reply arrives."""
    dialect: Any = engine.dialect
    original = dialect.do_commit

    def do_commit(connection: Any) -> None:
        reach("before COMMIT")
        original(connection)
        reach("inside COMMIT")

    dialect.do_commit = do_commit
