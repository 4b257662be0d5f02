"""The private SQLAlchemy names that the library uses are still there and still mean what they meant.

When one of these fails after an upgrade of SQLAlchemy, look at `_sqlalchemy.py` and `session.py` first.
"""

from __future__ import annotations

import inspect

import pytest
from models import Hero
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, create_engine, delete, event, insert, text, update
from sqlalchemy.engine import Connection
from sqlalchemy.engine.util import TransactionalContext
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, InstanceState, Mapped, Mapper, Session, mapped_column, relationship
from sqlalchemy.orm.base import PASSIVE_OFF, PassiveFlag
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.orm.session import SessionTransaction
from sqlmodel import SQLModel

from sqlmodel_cache import _sqlalchemy


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (Session, "get", ["self", "entity", "ident"]),
        (Session, "_merge", ["self", "state", "state_dict"]),
        (Session, "_autoflush", ["self"]),
        (Session, "_autobegin_t", ["self", "begin"]),
        (Connection, "_begin_impl", ["self", "transaction"]),
        (Connection, "_begin_twophase_impl", ["self", "transaction"]),
        (Connection, "_exec_single_context", ["self", "dialect", "context", "statement", "parameters"]),
        (Connection, "_exec_insertmany_context", ["self", "dialect", "context"]),
        (Connection, "_commit_impl", ["self"]),
        (Connection, "_commit_twophase_impl", ["self", "xid", "is_prepared"]),
        (Connection, "_rollback_impl", ["self"]),
        (Connection, "_rollback_twophase_impl", ["self", "xid", "is_prepared"]),
        (TransactionalContext, "_trans_ctx_check", None),
        (type(Session().identity_map), "_add_unpresent", ["self", "state", "key"]),
        (InstanceState, "_commit_all", ["self", "dict_", "instance_dict"]),
        (_sqlalchemy.LazyLoader, "_emit_lazyload", ["self", "session", "state", "primary_key_identity", "passive"]),
        (_sqlalchemy.LazyLoader, "use_get", None),
        (_sqlalchemy.LazyLoader, "_raise_always", None),
        (_sqlalchemy.LazyLoader, "_raise_on_sql", None),
        (Mapper, "_path_registry", None),
        (Mapper, "_prop_set", None),
        (Mapper, "_with_polymorphic_mappers", None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_names(owner: type, name: str, parameters: list[str] | None) -> None:
    """Each is defined on the class where it is replaced or called, with these leading parameters."""
    assert name in vars(owner)
    if parameters is not None:
        assert list(inspect.signature(vars(owner)[name]).parameters)[: len(parameters)] == parameters


def test_attributes_of_instances() -> None:
    """What is read from sessions, transactions and dialects."""
    engine = create_engine("sqlite://", isolation_level="SERIALIZABLE")
    with Session(engine) as session:
        assert session._flushing is False
        connection = session.connection()
        assert _sqlalchemy.connections(session) == [connection]
        with session.begin_nested():
            assert _sqlalchemy.connections(session) == [connection]
        assert _sqlalchemy.isolation_level(connection) == ("SERIALIZABLE", True)
    plain = create_engine("sqlite://")
    with plain.connect() as connection:
        assert _sqlalchemy.isolation_level(connection) == ("SERIALIZABLE", False)
    assert _sqlalchemy.isolation_level(plain.execution_options(isolation_level="AUTOCOMMIT")) == ("AUTOCOMMIT", True)
    engine.dispose()
    plain.dispose()


def test_transaction_that_a_get_begins_is_the_sessions_own() -> None:
    """It has the same attributes, fires the same events, and ends in the same state; its snapshot is made on demand."""
    assert _sqlalchemy._BEGINS_LIGHTLY
    seen: list[tuple[dict[str, object], list[str], object]] = []
    for begin in (lambda session: session._autobegin_t(), _sqlalchemy.autobegin):
        session, fired = Session(), list[str]()
        for name in ("after_transaction_create", "after_transaction_end"):
            event.listen(session, name, lambda *_, fired=fired, name=name: fired.append(name))
        begin(session)
        transaction = session.get_transaction()
        assert isinstance(transaction, SessionTransaction)
        assert "_new" in vars(transaction) or type(transaction) is _sqlalchemy.Begun
        names = ("_new", "_deleted", "_dirty", "_key_switches", "nested", "origin", "_state", "_parent", "_connections")
        found = {name: getattr(transaction, name) for name in names}
        assert vars(transaction).keys() <= {*names, "session"}
        empty = {name: (type(value), len(value)) for name, value in found.items() if name in names[:4]}
        session.close()
        assert session.get_transaction() is None
        seen.append(({**found, **empty}, fired, (transaction._state, transaction.session is session)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("begin", [lambda session: session._autobegin_t(), _sqlalchemy.autobegin], ids=["own", "get"])
@pytest.mark.parametrize("nested", [False, True])
def test_transaction_that_a_get_begins_restores_all(begin, nested: bool) -> None:  # type: ignore[no-untyped-def]
    """What was added, deleted, changed, and what changed its key, is after a rollback as it was."""
    engine = create_engine("sqlite://")
    SQLModel.metadata.create_all(engine, tables=[Hero.__table__])  # type: ignore[attr-defined]
    with Session(engine) as session:
        session.add_all([Hero(id=n, name="Rusty") for n in (1, 2, 3)])
        session.commit()
        heroes = [session.get_one(Hero, n) for n in (1, 2, 3)]
        session.rollback()
        begin(session)
        savepoint = session.begin_nested() if nested else session
        added = Hero(id=4, name="New")
        session.add(added)
        session.delete(heroes[0])
        heroes[1].name = "Other"
        heroes[2].id = 5
        session.flush()
        savepoint.rollback()
        assert added not in session
        assert [hero.id for hero in heroes] == [1, 2, 3]
        assert heroes[0] in session
        assert heroes[1].name == "Rusty"
        assert session.get(Hero, 3) is heroes[2]
        assert session.get(Hero, 5) is None
    engine.dispose()


def test_session_that_may_not_begin_says_so_to_a_get() -> None:
    """As to a SELECT: where it does not begin by itself, is closed for good, or its block's transaction has ended."""
    with pytest.raises(InvalidRequestError, match="Autobegin is disabled"):
        _sqlalchemy.autobegin(Session(autobegin=False))
    closed = Session(close_resets_only=False)
    closed.close()
    with pytest.raises(InvalidRequestError, match="permanently closed"):
        _sqlalchemy.autobegin(closed)
    with Session() as session, session.begin() as transaction:
        transaction.rollback()
        with pytest.raises(InvalidRequestError, match="inside context manager"):
            _sqlalchemy.autobegin(session)


def test_connections_go_through_the_replaced_methods() -> None:
    """A transaction of a connection, of a session, and each of its statements, call exactly what is replaced."""
    calls: list[str] = []
    patches = _sqlalchemy.Patches()
    for name in ("_begin_impl", "_exec_single_context", "_exec_insertmany_context", "_commit_impl", "_rollback_impl"):

        def make(original, name=name):
            def call(self, *args):
                calls.append(name)
                return original(self, *args)

            return call

        patches.replace(Connection, name, make)
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (a)")
        with Session(engine) as session:
            session.connection().exec_driver_sql("INSERT INTO t VALUES (1)")
            session.connection().execute(text("SELECT a FROM t"))
            session.connection().execute(insert(_T).returning(_T.c.a), [{"a": 2}, {"a": 3}])
            session.commit()
            session.connection()
    finally:
        patches.restore()
        engine.dispose()
    statement = "_exec_single_context"
    first = ["_begin_impl", statement, "_commit_impl"]
    second = ["_begin_impl", statement, statement, "_exec_insertmany_context", "_commit_impl"]
    assert calls == [*first, *second, "_begin_impl", "_rollback_impl"]


_T = Table("t", MetaData(), Column("a", Integer))


def test_assigned_columns_of_statements() -> None:
    """The values that a statement itself assigns can be read."""
    table = SQLModel.metadata.tables["hero"]
    name = table.c.name
    for statement in (update(table).values({name: "x"}), update(table).ordered_values((name, "x"))):
        assert list(_sqlalchemy.assigned(statement)) == [name]
    assert list(_sqlalchemy.assigned(insert(table).values([{"name": "x"}, {"name": "y"}]))) == ["name"]
    assert _sqlalchemy.assigned(insert(table)) == {}
    assert delete(table).table is table


def test_registries_know_every_mapper() -> None:
    """All mappers are found without configuring them."""
    assert _all_registries()
    assert Hero in {mapper.class_ for mapper in _sqlalchemy.mappers()}


def test_new_instance_is_what_loading_makes() -> None:
    """An attached instance has the state that a loaded one has."""
    engine = create_engine("sqlite://")
    SQLModel.metadata.create_all(engine)
    seen = []
    with Session(engine) as session:
        session.add(Hero(id=1, name="a"))
        session.commit()
    with Session(engine) as one, Session(engine) as two:
        event.listen(two, "loaded_as_persistent", lambda session, instance: seen.append(instance))
        loaded = one.get_one(Hero, 1)
        mapper = inspect_mapper(Hero)
        values = {key: getattr(loaded, key) for key in ("id", "name", "age", "team_id")}
        maker = _sqlalchemy.Maker(mapper, _sqlalchemy.path_of(mapper), ())
        attached = maker.attach(two, (Hero, (1,), None), values)
        assert seen == [attached]
        states = [InstanceState.__getstate__(_sqlalchemy.instance_state(each)) for each in (loaded, attached)]
        for state in states:
            state.pop("instance")
            state.pop("manager")
        assert states[0] == states[1]
        assert loaded.__dict__.keys() == attached.__dict__.keys()
        assert two.identity_map[(Hero, (1,), None)] is attached
    engine.dispose()


def inspect_mapper(class_: type) -> Mapper[object]:
    """Return the mapper of a class."""
    mapper: Mapper[object] = class_.__mapper__  # type: ignore[attr-defined]
    return mapper


def test_identity_class_is_that_of_identity_keys() -> None:
    """Instances of a subclass share their base's identities."""
    mapper = inspect_mapper(Hero)
    assert _sqlalchemy.identity_class(mapper) is Hero
    assert _sqlalchemy.selected_with(mapper) == [mapper]


def test_lazy_loads_go_through_the_replaced_method() -> None:
    """A lazy load that has found nothing in the identity map calls it, with all arguments by position.

    What it loads remembers where its load began.
    """
    assert list(inspect.signature(_sqlalchemy.LazyLoader._emit_lazyload).parameters)[5:] == [
        "loadopt",
        "extra_criteria",
        "extra_options",
        "alternate_effective_path",
        "execution_options",
    ]
    calls: list[bool] = []
    patches = _sqlalchemy.Patches()

    def make(original):
        def call(loader, session, state, ident, passive, *options):
            assert ident == [1]
            assert state.load_options == ()
            assert _sqlalchemy.relationship_of(loader) is loader.parent_property
            calls.append(_sqlalchemy.is_look_up(loader) and _sqlalchemy.is_plain_load(state, passive, *options))
            return original(loader, session, state, ident, passive, *options)

        return call

    patches.replace(_sqlalchemy.LazyLoader, "_emit_lazyload", make)
    engine = create_engine("sqlite://")
    _Base.metadata.create_all(engine)
    try:
        with Session(engine) as session:
            session.add(_Node(id=2, parent=_Node(id=1)))
            session.commit()
        with Session(engine) as session:
            node = session.get_one(_Node, 2)
            loaded = node.parent
            mapper = inspect_mapper(_Node)
            path = _sqlalchemy.path_of_lazy_load(mapper, mapper.relationships["parent"])
            assert (_sqlalchemy.instance_state(loaded).load_path, calls) == (path, [True])
            assert node.parent is loaded
            assert calls == [True]
            session.expunge(loaded)
            session.expire(node, ["parent"])
            _sqlalchemy.instance_state(node).get_history("parent", PASSIVE_OFF | PassiveFlag.NO_RAISE)
            assert calls == [True, False]
    finally:
        patches.restore()
        engine.dispose()


@pytest.mark.parametrize("at", range(5))
def test_parts_of_other_loads_are_not_plain(at: int) -> None:
    """Whatever a caller of the replaced method adds to a lazy load makes it another; so does a key that is missing."""
    state: InstanceState[object] = _sqlalchemy.instance_state(_Node(id=1))
    none = (None, (), (), None, {})
    assert not _sqlalchemy.is_plain_load(state, PASSIVE_OFF, *none)
    state.key = (_Node, (1,), None)
    assert _sqlalchemy.is_plain_load(state, PASSIVE_OFF, *none)
    assert not _sqlalchemy.is_plain_load(state, PASSIVE_OFF | PassiveFlag.NO_AUTOFLUSH, *none)
    assert not _sqlalchemy.is_plain_load(state, PASSIVE_OFF, *none[:at], {"some": "thing"}, *none[at + 1 :])


class _Base(DeclarativeBase):
    """Keeps the table out of the other tests'."""

    metadata = MetaData()


class _Node(_Base):
    """Refers to another by its primary key."""

    __tablename__ = "node"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    parent: Mapped[_Node | None] = relationship(remote_side="_Node.id")


def test_rows_that_were_fetched_early_are_left_to_the_result() -> None:
    """The strategy that dialects use to fetch before a COMMIT gives the result all rows."""
    engine = create_engine("sqlite://")

    told: list[object] = []

    @event.listens_for(engine, "before_cursor_execute")
    def prepare(
        connection: object, cursor: object, statement: str, parameters: object, context: object, _: bool
    ) -> None:
        if "RETURNING" in statement:
            assert _sqlalchemy.can_buffer(context)
            _sqlalchemy.when_executed(context, told.append)

    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a)")
        result = connection.exec_driver_sql("INSERT INTO t VALUES (1), (2) RETURNING a")
        assert told == [[(1,), (2,)]]
        assert result.scalars().all() == [1, 2]
    engine.dispose()
