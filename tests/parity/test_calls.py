"""Every way to call `get`, in every state of a session: the same object, the same SQL, the same error."""

from __future__ import annotations

import datetime
import decimal
import random
import uuid
from collections import namedtuple
from typing import Any

import pytest
from parity.looks import content
from parity.runner import Databases, Scenario, World, compare
from parity.zoo_declarative import DCompositeKey, DMutable, DNames, DServer, DTwin, DVersion, Version
from parity.zoo_relations import RChild, RParent
from parity.zoo_sqlmodel import ZDay, ZHero, ZPair, ZTeam, ZText, ZTypes
from sqlalchemy import event, func, inspect, select, text
from sqlalchemy.orm import (
    Session,
    aliased,
    defer,
    joinedload,
    lazyload,
    load_only,
    raiseload,
    scoped_session,
    selectinload,
    sessionmaker,
    undefer,
    with_loader_criteria,
    with_polymorphic,
)
from sqlmodel import Session as SQLModelSession

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register a scenario."""
    SCENARIOS[function.__name__] = function  # type: ignore[attr-defined]
    return function


def hero(world: World, **options: Any) -> Session:
    """Return a session for which a hit of the hero is ready."""
    world.warm(ZHero, 1)
    return Session(world.engine, **options)


def tried(world: World, label: str, session: Any, model: Any, ident: Any, kind: str, **options: Any) -> Any:
    """Get, look at what comes, or at the error, and return it."""
    held = []

    def get() -> Any:
        held.append(world.get(session, model, ident, kind, **options))
        world.look(label, held[0])
        return held[0]

    world.attempt(label, get)
    return held[0] if held else None


# keys

Row = namedtuple("Row", "id")  # noqa: PYI024


class _Int(int):
    pass


class _Text(str):
    __slots__ = ()


KEYS: list[tuple[Any, Any, str]] = [
    (ZHero, 1, "hit"),
    (ZHero, (1,), "hit"),
    (ZHero, [1], "hit"),
    (ZHero, {"id": 1}, "hit"),
    (ZHero, Row(1), "hit"),
    (ZHero, _Int(1), "bypass"),
    (ZHero, {1}, "bypass"),
    (ZHero, {1: None}.keys(), "bypass"),
    (ZHero, range(1, 2), "bypass"),
    (ZHero, "1", "bypass"),
    (ZHero, True, "bypass"),
    (ZHero, 1.0, "bypass"),
    (ZHero, decimal.Decimal(1), "bypass"),
    (ZHero, b"1", "bypass"),
    (ZHero, "x", "bypass"),
    (ZHero, 1.5, "bypass"),
    (ZHero, None, "bypass"),
    (ZHero, (None,), "bypass"),
    (ZHero, 2**63, "bypass"),
    (ZHero, -(2**70), "bypass"),
    (ZHero, 2**63 - 1, "miss"),
    (ZHero, -1, "miss"),
    (ZHero, 99, "miss"),
    (ZHero, (), "bypass"),
    (ZHero, (1, 2), "bypass"),
    (ZHero, {}, "bypass"),
    (ZHero, {"id": 1, "name": "h"}, "bypass"),
    (ZHero, {"nr": 1}, "bypass"),
    (ZHero, {"id": "1"}, "bypass"),
    (ZHero, object, "bypass"),
    (ZHero, float("nan"), "bypass"),
    (ZPair, ("a", 2, datetime.date(2026, 1, 31)), "hit"),
    (ZPair, ["a", 2, datetime.date(2026, 1, 31)], "hit"),
    (ZPair, {"number": 2, "day": datetime.date(2026, 1, 31), "owner": "a"}, "hit"),
    (ZPair, {"number": 2, "owner": "a"}, "bypass"),
    (ZPair, ("a", 2), "bypass"),
    (ZPair, ("a", None, datetime.date(2026, 1, 31)), "bypass"),
    (ZPair, (None, None, None), "bypass"),
    (ZPair, ("a", "2", datetime.date(2026, 1, 31)), "bypass"),
    (ZPair, (2, "a", datetime.date(2026, 1, 31)), "bypass"),
    (ZPair, ("a", 2, "2026-01-31"), "bypass"),
    (ZPair, ("a", 2, datetime.datetime(2026, 1, 31)), "bypass"),
    (ZPair, ("A", 2, datetime.date(2026, 1, 31)), "miss"),
    (ZPair, "a", "bypass"),
    (ZText, "x/ü:'", "hit"),
    (ZText, _Text("x/ü:'"), "bypass"),
    (ZText, "x/u\u0308:'", "miss"),
    (ZText, 5, "bypass"),
    (ZText, b"x", "bypass"),
    (ZText, "", "miss"),
    (ZText, "\x00", "miss"),
    (ZText, "\ud800", "miss"),
    (ZText, "x" * 5000, "miss"),
    (ZText, "ab", "miss"),
    (ZDay, datetime.date(2026, 1, 31), "hit"),
    (ZDay, datetime.datetime(2026, 1, 31), "bypass"),
    (ZDay, "2026-01-31", "bypass"),
    (ZTypes, uuid.UUID(int=0xABC), "hit"),
    (ZTypes, str(uuid.UUID(int=0xABC)), "bypass"),
    (ZTypes, 0xABC, "bypass"),
    (DCompositeKey, (1, 2), "hit"),
    (DCompositeKey, Version(1, 2), "bypass"),
    (DCompositeKey, {"version": Version(1, 2)}, "bypass"),
    (DNames, {"ident": 1}, "hit"),
    (DNames, {"key": 1}, "bypass"),
    (DNames, {"the id": 1}, "bypass"),
]


@pytest.mark.parametrize("one", [False, True], ids=["get", "get_one"])
def test_keys(databases: Databases, one: bool) -> None:
    """Keys of every shape and type, right and wrong, missing rows, and get_one of them."""

    def made(model: Any, ident: Any, kind: str) -> Scenario:
        def scenario(world: World) -> None:
            for known, key in ((ZHero, 1), (ZText, "x/ü:'"), (ZDay, datetime.date(2026, 1, 31)), (DNames, 1)):
                if known is model:
                    world.warm(known, key)
            if model is ZPair:
                world.warm(ZPair, ("a", 2, datetime.date(2026, 1, 31)))
            if model is ZTypes:
                world.warm(ZTypes, uuid.UUID(int=0xABC))
            if model is DCompositeKey:
                world.warm(DCompositeKey, (1, 2))
            with Session(world.engine) as session:
                held = []

                def get() -> Any:
                    with world.expecting(kind):
                        held.append(session.get_one(model, ident) if one else session.get(model, ident))
                    return held[0]

                world.attempt("first", get)
                world.see("content", content(session))
                world.attempt("second", lambda: world.look("second", session.get(model, ident)))
                world.see("content", content(session))

        scenario.__name__ = f"{model.__name__} {ident!r}"[:80]
        return scenario

    compare(databases, *(made(*key) for key in KEYS))


@scenario
def entities(world: World) -> None:
    """What is not a mapped class raises what it raises; a mapper is as good as its class."""

    class NotMapped:
        pass

    with hero(world) as session:
        mapper = inspect(ZHero)
        for entity in ("ZHero", ZHero.__table__, aliased(ZHero), NotMapped, None, 5, ZHero.id, ZHero(id=1, name="x")):
            tried(world, type(entity).__name__, session, entity, 1, "refused")
        tried(world, "mapper", session, mapper, 1, "refused")
        tried(world, "polymorphic", session, with_polymorphic(ZHero, "*"), 1, "refused")
        world.attempt("no ident", lambda: session.get(ZHero))  # type: ignore[call-arg]
        world.attempt("unknown option", lambda: session.get(ZHero, 1, unknown=1))  # type: ignore[call-overload]
        world.attempt("positional option", lambda: session.get(ZHero, 1, []))  # type: ignore[call-overload]
        with world.expecting("hit"):
            world.attempt("keywords", lambda: session.get(entity=ZHero, ident=1))


# what a call may ask for


@scenario
def options_of_a_call(world: World) -> None:
    """Loader options, locks, populate_existing, tokens and bind arguments go to the database."""
    for number, options in enumerate(
        [
            {"with_for_update": True},
            {"with_for_update": {}},
            {"with_for_update": {"nowait": True, "of": ZHero}},
            {"with_for_update": {"unknown": True}},
            {"populate_existing": True},
            {"options": [defer(ZHero.name)]},
            {"options": [load_only(ZHero.name)]},
            {"options": [joinedload(ZHero.team)]},
            {"options": [selectinload(ZHero.team)]},
            {"options": [lazyload(ZHero.team)]},
            {"options": [raiseload("*")]},
            {"options": (undefer("*"),)},
            {"options": joinedload(ZHero.team)},
            {"options": [with_loader_criteria(ZHero, ZHero.name == "nobody")]},
            {"options": [5]},
            {"identity_token": "t"},
            {"bind_arguments": {"mapper": ZHero}},
            {"bind_arguments": {"bind": world.engine}},
            {"bind_arguments": {"unknown": 1}},
            {"execution_options": {"populate_existing": True}},
            {"execution_options": {"autoflush": False}},
            {"execution_options": {"yield_per": 10}},
            {"execution_options": {"stream_results": True}},
            {"execution_options": {"isolation_level": "SERIALIZABLE"}},
            {"execution_options": {"identity_token": "t"}},
            {"execution_options": {"compiled_cache": None}},
            {"execution_options": {"mine": 1}},
        ]
    ):
        with hero(world) as session:
            label = f"{number} {sorted(options)}"
            tried(world, label, session, ZHero, 1, "bypass", **options)
            world.see(label, content(session))
            found = session.scalars(select(ZHero)).first()
            world.look(label, found)
            world.attempt(label, lambda found=found: found.team)


@scenario
def options_that_say_nothing(world: World) -> None:
    """The defaults, spelled out, are hits."""
    for options in (
        {"with_for_update": None},
        {"with_for_update": False},
        {"populate_existing": False},
        {"populate_existing": None},
        {"options": None},
        {"options": ()},
        {"identity_token": None},
        {"bind_arguments": None},
        {"bind_arguments": {}},
        {"execution_options": {}},
    ):
        with hero(world) as session:
            tried(world, repr(options), session, ZHero, 1, "hit", **options)


@scenario
def falsy_tokens(world: World) -> None:
    """An identity token counts whatever its truth."""
    for token in (0, "", False, ()):
        with hero(world) as session:
            # it is no token for SQLAlchemy when it loads
            held = tried(world, repr(token), session, ZHero, 1, "hit", identity_token=token)
            world.see("content", content(session))
            world.see("same", session.get(ZHero, 1) is held)
            world.attempt("another", lambda token=token, held=held: session.get(ZHero, 1, identity_token=token) is held)
        with hero(world) as session:
            tried(world, f"option {token!r}", session, ZHero, 1, "bypass", execution_options={"identity_token": token})
            world.see("content", content(session))


@scenario
def populate_existing_in_both_ways(world: World) -> None:
    """The parameter goes before the option."""
    for parameter in (None, False, True):
        for option in (False, True):
            with hero(world) as session:
                obj = session.get(ZHero, 1, options=[defer(ZHero.name)])
                obj.age = 77
                session.autoflush = False
                world.attempt(
                    "got",
                    lambda p=parameter, o=option: session.get(
                        ZHero, 1, populate_existing=p, execution_options={"populate_existing": o}
                    ),
                )
                world.look(f"{parameter} {option}", obj)


@scenario
def options_stay_with_the_object(world: World) -> None:
    """What options a first, uncached get had does not come with a later hit."""
    with hero(world) as session:
        world.look("first", session.get(ZHero, 1, options=[defer(ZHero.name), raiseload("*")]))
        session.expunge_all()
        obj = world.get(session, ZHero, 1)
        world.look("second", obj)
        world.attempt("team", lambda: obj.team)
        session.expire(obj)
        world.attempt("name", lambda: obj.name)
        world.look("third", obj)


# sessions


@scenario
def autoflush_of_others(world: World) -> None:
    """Pending changes of other rows are flushed by a hit, as a SELECT would flush them."""
    with hero(world) as session:
        session.add(ZTeam(id=7, name="new"))
        obj = world.get(session, ZHero, 1)
        world.look("got", obj)
        world.see("content", content(session))
        session.get(ZTeam, 1).name = "changed"
        session.expunge(obj)
        world.look("again", world.get(session, ZHero, 1))
        session.rollback()


@scenario
def autoflush_that_fails(world: World) -> None:
    """The error of the flush is the get's error, with the same words, and so is what follows."""
    with hero(world) as session:
        session.add(ZTeam(id=1, name="there is one"))
        world.attempt("got", lambda: session.get(ZHero, 1))
        world.see("content", content(session))
        world.attempt("again", lambda: session.get(ZHero, 1))
        session.rollback()
        tried(world, "after rollback", session, ZHero, 1, "hit")


@scenario
def no_autoflush(world: World) -> None:
    """Nothing is flushed: by the block, by the session, by an attribute."""
    with hero(world) as session, session.no_autoflush:
        session.add(ZTeam(id=1, name="there is one"))
        tried(world, "block", session, ZHero, 1, "hit")
        world.see("content", content(session))
    with hero(world, autoflush=False) as session:
        session.add(ZHero(id=1, name="there is one"))
        tried(world, "session", session, ZHero, 1, "hit")
        world.see("content", content(session))
        world.attempt("flush", session.flush)


@scenario
def own_writes(world: World) -> None:
    """A transaction sees what it has written, flushed or not, by whatever means."""
    with hero(world) as session:
        session.add(ZHero(id=5, name="five"))
        tried(world, "flushed by the get", session, ZHero, 5, "bypass")
        session.execute(text("UPDATE zhero SET age = 41 WHERE id = 1"))
        tried(world, "text", session, ZHero, 1, "bypass")
        session.expunge_all()
        session.execute(ZHero.__table__.update().values(age=42))
        tried(world, "core", session, ZHero, 1, "bypass")
        session.rollback()
        tried(world, "rolled back", session, ZHero, 1, "hit")
        session.expunge_all()
        session.connection().exec_driver_sql("DELETE FROM zhero")
        tried(world, "driver", session, ZHero, 1, "bypass")
        session.rollback()
        session.expunge_all()
        session.execute(ZTeam.__table__.update().values(name="other table"))
        tried(world, "another table", session, ZHero, 1, "hit")


@scenario
def savepoints(world: World) -> None:
    """Rows that were written in a savepoint stay with the database until the transaction ends."""
    with hero(world) as session:
        with session.begin_nested():
            session.execute(ZHero.__table__.update().values(age=42))
            tried(world, "inside", session, ZHero, 1, "bypass")
        session.expunge_all()
        tried(world, "released", session, ZHero, 1, "bypass")
        session.rollback()
        with session.begin_nested() as nested:
            session.execute(ZHero.__table__.update().values(age=42))
            nested.rollback()
        session.expunge_all()
        tried(world, "rolled back", session, ZHero, 1, "bypass")
        session.commit()
        session.expunge_all()
        world.warm(ZHero, 1)
        with session.begin_nested():
            obj = tried(world, "hit inside", session, ZHero, 1, "hit")
            world.see("content", content(session))
        with session.begin_nested() as nested:
            nested.rollback()
        world.look("expired", obj)


@scenario
def ended_blocks(world: World) -> None:
    """A get inside a block whose transaction has ended already raises what it raises."""
    world.warm(ZHero, 1)
    with Session(world.engine) as session:
        try:
            with session.begin():
                session.commit()
                tried(world, "committed", session, ZHero, 1, "bypass")
        except Exception as error:
            world.see("left", repr(error))
        try:
            with session.begin():
                session.rollback()
                tried(world, "rolled back", session, ZHero, 1, "bypass")
        except Exception as error:
            world.see("left", repr(error))
        try:
            with session.begin_nested() as nested:
                nested.commit()
                tried(world, "nested, released", session, ZHero, 1, "bypass")
        except Exception as error:
            world.see("left", repr(error))
        session.rollback()
        try:
            with session.begin_nested() as nested:
                nested.rollback()
                tried(world, "nested, rolled back", session, ZHero, 1, "bypass")
        except Exception as error:
            world.see("left", repr(error))
        session.rollback()
        tried(world, "afterwards", session, ZHero, 1, "hit")


@scenario
def begin_blocks(world: World) -> None:
    """begin() around, before and after a get."""
    world.warm(ZHero, 1)
    with Session(world.engine) as session, session.begin():
        tried(world, "inside", session, ZHero, 1, "hit")
        world.see("content", content(session))
    with Session(world.engine) as session:
        tried(world, "before", session, ZHero, 1, "hit")
        world.attempt("begin", session.begin)
        world.attempt("begin_nested", lambda: session.begin_nested().commit())
        world.see("content", content(session))
        session.commit()
        world.attempt("prepare", session.prepare)
    with sessionmaker(world.engine).begin() as session:
        tried(world, "sessionmaker.begin", session, ZHero, 1, "hit")


@scenario
def no_autobegin(world: World) -> None:
    """A get raises unless the transaction has begun; for a row in the identity map it does not."""
    world.warm(ZHero, 1)
    with Session(world.engine, autobegin=False) as session:
        world.attempt("not begun", lambda: session.get(ZHero, 1))
        world.attempt("not a hit either", lambda: session.get(ZHero, 99))
        with session.begin():
            obj = world.get(session, ZHero, 1)
            world.look("begun", obj)
        world.attempt("expired", lambda: session.get(ZHero, 1))
        world.attempt("name", lambda: obj.name)


@scenario
def closed_sessions(world: World) -> None:
    """A closed session begins anew, unless it was told not to."""
    world.warm(ZHero, 1)
    session = Session(world.engine)
    session.close()
    tried(world, "closed", session, ZHero, 1, "hit")
    session.reset()
    tried(world, "reset", session, ZHero, 1, "hit")
    session.invalidate()
    tried(world, "invalidated", session, ZHero, 1, "hit")
    session.close()
    final = Session(world.engine, close_resets_only=False)
    tried(world, "open", final, ZHero, 1, "hit")
    final.close()
    world.attempt("closed for good", lambda: final.get(ZHero, 1))
    world.attempt("twice", lambda: final.get(ZHero, 1))


@scenario
def unbound_sessions(world: World) -> None:
    """Without a bind, or with one that cannot be reached."""
    from sqlalchemy import create_engine

    world.warm(ZHero, 1)
    world.attempt("no bind", lambda: Session().get(ZHero, 1))
    world.attempt("another model's bind", lambda: Session(binds={ZTeam: world.engine}).get(ZHero, 1))
    nowhere = create_engine("sqlite:////no/such/folder/x.db")
    world.attempt("no database", lambda: Session(nowhere).get(ZHero, 1))
    connection = world.engine.connect()
    connection.close()
    world.attempt("closed connection", lambda: Session(connection).get(ZHero, 1))


@scenario
def sessions_on_connections(world: World) -> None:
    """A session that joins a connection's transaction, in every mode, and sees what that has written."""
    world.warm(ZHero, 1)
    for mode in ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"):
        with world.engine.connect() as connection, connection.begin():
            connection.execute(ZTeam.__table__.update().values(name=mode))
            with Session(connection, join_transaction_mode=mode) as session:
                held = tried(world, mode, session, ZHero, 1, "hit")
                world.see("same", session.get(ZHero, 1) is held)
                session.rollback()
            world.see("in", connection.in_transaction())
            connection.rollback() if connection.in_transaction() else None
        with world.engine.connect() as connection, connection.begin() as transaction:
            connection.execute(ZHero.__table__.update().values(age=42))
            with Session(connection, join_transaction_mode=mode) as session:
                tried(world, mode, session, ZHero, 1, "bypass")
            transaction.rollback() if transaction.is_active else None


@scenario
def kinds_of_sessions(world: World) -> None:
    """Subclasses, makers, scoped sessions, and what they carry."""
    world.warm(ZHero, 1)

    class Mine(SQLModelSession):
        def get(self, entity: Any, ident: Any, **options: Any) -> Any:
            self.info["gets"] = self.info.get("gets", 0) + 1
            return super().get(entity, ident, **options)

    for make in (
        sessionmaker(world.engine),
        sessionmaker(world.engine, class_=Mine, info={"a": 1}),
        sessionmaker(class_=SQLModelSession, bind=world.engine, expire_on_commit=False),
        lambda: Mine(world.engine),
        lambda: Session(world.engine, enable_baked_queries=False, twophase=False),
    ):
        with make() as session:
            held = tried(world, "get", session, ZHero, 1, "hit")
            world.see("info", session.info)
            world.see("get_one", session.get_one(ZHero, 1) is held)
    scoped = scoped_session(sessionmaker(world.engine, class_=Mine), scopefunc=lambda: 1)
    held = tried(world, "scoped", scoped, ZHero, 1, "hit")
    world.see("same", scoped().get(ZHero, 1) is held)
    world.see("info", scoped.info)
    scoped.remove()


@scenario
def execution_options_of_engines(world: World) -> None:
    """Options of an engine and of a connection that mean nothing to a row."""
    world.warm(ZHero, 1)
    with Session(world.engine.execution_options(mine=1, logging_token="t")) as session:
        tried(world, "engine", session, ZHero, 1, "hit")
    with Session(world.engine) as session:
        session.connection(execution_options={"mine": 1})
        tried(world, "connection", session, ZHero, 1, "hit")
    with Session(world.engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        tried(world, "autocommit", session, ZHero, 1, "hit")
    with Session(world.engine.execution_options(isolation_level="SERIALIZABLE")) as session:
        tried(world, "serializable", session, ZHero, 1, "bypass")
    with Session(world.engine.execution_options(isolation_level="nonsense")) as session:
        tried(world, "nonsense", session, ZHero, 1, "bypass")


# several databases


@scenario
def binds_by_class(world: World) -> None:
    """Each class by its own bind: by class, base class, mapper, table."""
    world.warm(ZHero, 1)
    for binds in (
        {ZHero: world.engine},
        {inspect(ZHero): world.engine},
        {ZHero.__table__: world.engine},
        {ZHero.__bases__[0]: world.engine},
        {ZTeam: None, ZHero: world.engine},
    ):
        with Session(binds=binds) as session:
            tried(world, "got", session, ZHero, 1, "hit")
    with Session(world.engine, twophase=False) as session:
        session.bind_mapper(ZHero, world.engine)
        session.bind_table(ZTeam.__table__, world.engine)
        tried(world, "bound later", session, ZHero, 1, "hit")


@scenario
def two_databases(world: World) -> None:
    """Two in-memory databases with one table: each row from its own."""
    from sqlalchemy import StaticPool, create_engine

    engines = [create_engine("sqlite://", poolclass=StaticPool) for _ in range(2)]
    for number, engine in enumerate(engines):
        ZHero.metadata.create_all(engine, tables=[ZTeam.__table__, ZHero.__table__])
        with Session(engine) as session:
            session.add(ZHero(id=1, name=f"in {number}"))
            session.commit()
    for _ in range(3):
        for engine in engines:
            with Session(world.engine, binds={ZHero: engine}) as session:
                world.look("by class", session.get(ZHero, 1))
            with Session(engine) as session:
                world.look("by engine", session.get(ZHero, 1))

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **others: Any) -> Any:
            return engines[self.info["at"]]

    for at in (0, 1, 0, 1):
        with Routing(info={"at": at}) as session:
            world.look("routed", session.get(ZHero, 1))

    class ByClause(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **others: Any) -> Any:
            return engines[0 if clause is None else 1]

    for _ in range(3):
        with ByClause() as session:
            world.look("by clause", session.get(ZHero, 1))
    for engine in engines:
        engine.dispose()


@scenario
def attached_databases(world: World) -> None:
    """One table name in two attached databases."""
    from sqlalchemy import StaticPool, create_engine

    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("ATTACH ':memory:' AS side")
        for schema in ("main", "side"):
            connection.exec_driver_sql(f"CREATE TABLE {schema}.ztext (code TEXT PRIMARY KEY, label TEXT)")
            connection.exec_driver_sql(f"INSERT INTO {schema}.ztext VALUES ('a', 'in {schema}')")
    for _ in range(3):
        for schema in ("main", "side", None):
            mapped = engine.execution_options(schema_translate_map={None: schema})
            with Session(mapped) as session:
                world.look(f"engine {schema}", session.get(ZText, "a"))
            with Session(engine) as session:
                options = {"schema_translate_map": {None: schema}}
                world.look(f"call {schema}", session.get(ZText, "a", execution_options=options))
            with Session(engine) as session:
                session.connection(execution_options={"schema_translate_map": {None: schema}})
                world.look(f"connection {schema}", session.get(ZText, "a"))
    with Session(engine.execution_options(schema_translate_map={None: "side"})) as session:
        session.get(ZText, "a").label = "changed"
        session.commit()
    for schema in ("main", "side"):
        with Session(engine.execution_options(schema_translate_map={None: schema})) as session:
            world.look(f"changed {schema}", session.get(ZText, "a"))
    engine.dispose()


@scenario
def sharded(world: World) -> None:
    """A sharded session goes to the database, and its objects carry the shard's token."""
    from sqlalchemy.ext.horizontal_shard import ShardedSession

    world.warm(ZHero, 1)
    with ShardedSession(
        shard_chooser=lambda mapper, instance, clause=None: "a",
        identity_chooser=lambda mapper, key, **_: ["a"],
        execute_chooser=lambda context: ["a"],
        shards={"a": world.engine},
    ) as session:
        tried(world, "sharded", session, ZHero, 1, "bypass")
        world.see("content", content(session))
        tried(world, "token", session, ZHero, 1, "bypass", identity_token="a")


@scenario
def read_only(world: World) -> None:
    """A database that refuses writes."""
    world.warm(ZHero, 1)
    with Session(world.engine) as session:
        session.execute(text("PRAGMA query_only = ON"))
        obj = world.get(session, ZHero, 1)
        world.look("got", obj)
        obj.age = 9
        world.attempt("commit", session.commit)
        world.attempt("got", lambda: session.get(ZHero, 1))
        session.rollback()
        world.look("rolled back", session.get(ZHero, 1))
        session.execute(text("PRAGMA query_only = OFF"))


# events


HOOKS = [
    "before_flush",
    "after_flush",
    "after_flush_postexec",
    "before_commit",
    "after_commit",
    "after_rollback",
    "after_soft_rollback",
    "after_begin",
    "after_transaction_create",
    "after_transaction_end",
    "pending_to_persistent",
    "before_attach",
    "after_attach",
    "transient_to_pending",
]


def _hooked(name: str) -> Scenario:
    def scenario(world: World) -> None:
        world.warm(ZHero, 1)
        busy: list[int] = []

        def hook(*arguments: Any) -> None:
            session = arguments[0]
            if busy or len(world.journal) > 400:
                return
            busy.append(1)
            try:
                before = len(world.journal)
                world.attempt(f"in {name}", lambda: session.get(ZHero, 1))
                # Whether it is a hit is not the matter here; a SELECT may be missing.
                world.journal[before:] = [
                    e for e in world.journal[before:] if e[0] != "sql" or not e[1].startswith("SELECT zhero")
                ]
            finally:
                busy.pop()

        with Session(world.engine) as session:
            event.listen(session, name, hook)
            session.add(ZTeam(id=50, name="hook"))
            world.attempt("flush", session.flush)
            world.attempt("nested", lambda: session.begin_nested().rollback())
            world.attempt("commit", session.commit)
            world.see("content", content(session))
            session.add(ZTeam(id=51, name="hook"))
            world.attempt("flush", session.flush)
            world.attempt("rollback", session.rollback)
            world.see("content", content(session))

    scenario.__name__ = f"get in {name}"
    return scenario


def test_gets_in_hooks(databases: Databases) -> None:
    """A get inside a session's event gives or raises what it would."""
    compare(databases, *map(_hooked, HOOKS))


@scenario
def load_events(world: World) -> None:
    """A load event that gets another row, one that raises, one that detaches."""
    world.warm(ZHero, 1)
    world.warm(ZTeam, 1)

    def other(target: Any, context: Any) -> None:
        session = inspect(target).session
        world.see("in", world.get(session, ZTeam, 1).name)
        world.look("target", target)

    world.listen(ZHero, "load", other)
    with Session(world.engine) as session:
        world.look("got", world.get(session, ZHero, 1))
        world.see("content", content(session))
    world.close()


@scenario
def load_events_that_raise(world: World) -> None:
    """An error in a load event is the get's."""
    world.warm(ZHero, 1)

    def refuse(target: Any, context: Any) -> None:
        raise LookupError("refused by a load event")

    world.listen(ZHero, "load", refuse)
    with Session(world.engine) as session:
        tried(world, "raises", session, ZHero, 1, "hit")
        world.see("content", content(session))
        tried(world, "again", session, ZHero, 1, "hit")


@scenario
def execute_listeners(world: World) -> None:
    """A session that narrows its SELECTs goes to the database."""
    world.warm(ZHero, 1)
    with Session(world.engine) as session:

        @event.listens_for(session, "do_orm_execute")
        def narrow(state: Any) -> None:
            state.statement = state.statement.options(with_loader_criteria(ZHero, ZHero.name == "other"))

        tried(world, "narrowed", session, ZHero, 1, "bypass")


# versions, concurrent writers


@scenario
def stale_data(world: World) -> None:
    """A version that has moved on makes the flush of an object from a hit fail, and a delete, too."""
    for action in ("update", "delete"):
        world.warm(DVersion, 1)
        with Session(world.engine) as session:
            obj = world.get(session, DVersion, 1)
            with world.engine.begin() as connection:
                connection.execute(DVersion.__table__.update().values(version=DVersion.__table__.c.version + 10))
            if action == "update":
                obj.name = "mine"
            else:
                session.delete(obj)
            world.attempt(action, session.commit)
            world.see("content", content(session))
            session.rollback()
            world.look("rolled back", obj)
            world.attempt("refreshed", lambda: obj.version)  # noqa: B023
            world.attempt("with_for_update", lambda: session.get(DVersion, 1, with_for_update=True))


@scenario
def version_check_on_lock(world: World) -> None:
    """A get for update checks the version of the object that is there."""
    world.warm(DVersion, 1)
    with Session(world.engine) as session:
        obj = world.get(session, DVersion, 1)
        with world.engine.begin() as connection:
            connection.execute(DVersion.__table__.update().values(version=99))
        world.attempt("locked", lambda: session.get(DVersion, 1, with_for_update=True))
        world.attempt("refreshed", lambda: session.refresh(obj, with_for_update=True))
        world.look("object", obj)


@scenario
def deleted_elsewhere(world: World) -> None:
    """The row of a hit is deleted by another session before this one changes it."""
    world.warm(ZHero, 1)
    with Session(world.engine) as session:
        obj = world.get(session, ZHero, 1)
        with Session(world.engine) as other:
            other.delete(other.get(ZHero, 1, with_for_update=True))
            other.commit()
        obj.age = 1
        world.attempt("flush", session.flush)
        session.rollback()
        world.attempt("name", lambda: obj.name)
        world.look("object", obj)
        world.attempt("got", lambda: session.get(ZHero, 1))
        world.attempt("one", lambda: session.get_one(ZHero, 1))


@scenario
def changed_in_place(world: World) -> None:
    """A mutable value of a hit is flushed when it changes in place, at depth not."""
    world.warm(DMutable, 1)
    with Session(world.engine) as session:
        obj = world.get(session, DMutable, 1)
        obj.data["b"] = 2
        world.look("changed", obj)
        session.flush()
        obj.items.append(3)
        obj.data["a"] = obj.items
        session.commit()
        world.look("committed", obj)
        world.see("values", (obj.data, obj.items))
        obj.items[0] = "x"
        session.rollback()
        world.see("values", (obj.data, obj.items))


@scenario
def values_are_not_shared(world: World) -> None:
    """What one session does to a value in place is not seen by the next hit."""
    world.warm(ZTypes, uuid.UUID(int=0xABC))
    for _ in range(3):
        with Session(world.engine) as session:
            obj = world.get(session, ZTypes, uuid.UUID(int=0xABC))
            world.look("got", obj)
            obj.tags["b"].append("mine")
            obj.tags["new"] = obj


@scenario
def server_values(world: World) -> None:
    """What the server computes is there after an INSERT, an UPDATE, and a get of it."""
    with Session(world.engine) as session:
        made = DServer(id=9, name="n")
        session.add(made)
        session.flush()
        world.look("inserted", made)
        session.commit()
    world.warm(DServer, 9)
    with Session(world.engine) as session:
        obj = world.get(session, DServer, 9)
        world.look("got", obj)
        obj.name = "changed"
        session.flush()
        world.look("flushed", obj)
        world.see("fetched", obj.fetched)
        obj.updated = func.abs(-5)
        session.flush()
        world.look("by expression", obj)
        session.commit()
        world.look("committed", session.get(DServer, 9))


@scenario
def lazy_loads(world: World) -> None:
    """A many-to-one finds its parent in the identity map; other relationships load as ever."""
    world.warm(RChild, 1, 2)
    world.warm(RParent, 1)
    with Session(world.engine) as session:
        child = world.get(session, RChild, 1)
        parent = world.get(session, RParent, 1)
        world.see("from the identity map", child.parent is parent)
        world.see("loaded", parent.children)
        world.see("same", parent.children[0] is child)
        sibling = parent.children[1]
        world.see("back reference", sibling.parent is parent)
        sibling.parent = None
        world.see("removed", parent.children)
        world.look("sibling", sibling)
        session.flush()
        session.rollback()
        world.look("parent", parent)
    with Session(world.engine) as session:
        child = world.get(session, RChild, 1)
        world.see("loaded", child.parent)
        world.see("proxy", child.parent_name)
        child.parent_id = None
        world.see("stays", child.parent)
        session.flush()
        world.see("flushed", child.parent)
        session.expire(child, ["parent"])
        world.see("gone", child.parent)


@scenario
def collections_before_they_load(world: World) -> None:
    """Appending to a collection that is not loaded is queued, and flushed."""
    world.warm(RParent, 1)
    with Session(world.engine) as session:
        parent = world.get(session, RParent, 1)
        session.add(RChild(id=7, name="new", parent=parent))
        world.look("queued", parent)
        session.flush()
        world.see("loaded", parent.children)
        session.rollback()
        world.look("rolled back", parent)


@scenario
def relationships_of_pending(world: World) -> None:
    """A hit may be given to a new object; cascades follow."""
    world.warm(ZTeam, 1)
    with Session(world.engine) as session:
        team = world.get(session, ZTeam, 1)
        made = ZHero(id=70, name="made")
        team.heroes.append(made)
        world.see("cascaded", made in session)
        session.commit()
        world.look("made", made)
        world.see("team", team.heroes)


@scenario
def twins(world: World) -> None:
    """Two classes on one table, keyed by different columns: each gets its own kind of object."""
    from parity.zoo_declarative import DPartial

    world.warm(DTwin, 1)
    world.warm(DPartial, "c")
    with Session(world.engine) as session:
        for kind in ("hit", "hit"):
            twin, partial = world.get(session, DTwin, 1, kind), world.get(session, DPartial, "c", kind)
            world.look("twin", twin)
            world.look("partial", partial)
            world.see("content", content(session))
            session.expunge_all()
        partial = world.get(session, DPartial, "c")
        partial.name = "changed"
        session.commit()
        twin = world.get(session, DTwin, 1, "miss")
        world.look("twin", twin)
        twin.name = "again"
        session.commit()
        session.expunge_all()
        world.look("partial", session.get(DPartial, "c"))


@scenario
def missing(world: World) -> None:
    """Rows that are not there, come, and go."""
    with Session(world.engine) as session:
        for _ in range(2):
            tried(world, "missing", session, ZHero, 99, "miss")
        world.attempt("one", lambda: session.get_one(ZHero, 99))
        with Session(world.engine) as other:
            other.add(ZHero(id=99, name="late"))
            other.commit()
        world.look("there", session.get(ZHero, 99))


@scenario
def random_order(world: World) -> None:
    """Attributes come in the order of a SELECT, whatever is got before."""
    order = random.Random(4)
    world.warm(ZHero, 1)
    with Session(world.engine) as session:
        for _ in range(5):
            options = order.choice([[undefer("*")], [defer(ZHero.age)], [load_only(ZHero.age)]])
            world.look("got", session.get(ZHero, 1, options=options, populate_existing=True))
            with Session(world.engine) as other:
                world.look("and", world.get(other, ZHero, 1))


@pytest.mark.parametrize("name", SCENARIOS)
def test_call(databases: Databases, name: str) -> None:
    """Each of the scenarios above."""
    compare(databases, SCENARIOS[name])
