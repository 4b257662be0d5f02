"""A write invalidates the rows that it names, or the table, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    CHAR,
    Engine,
    String,
    TypeDecorator,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column
from writes.entry import Row, rows
from writes.reads import Recorder, got, in_database, missed, warm
from writes.tables import (
    DAYS,
    UUIDS,
    Code,
    Day,
    Far,
    Gadget,
    Hero,
    HeroTag,
    Idle,
    Label,
    LegacyBase,
    Mixed,
    Part,
    Post,
    Robot,
    Tag,
    Team,
    Token,
    table_of,
)

from sqlmodel_cache import CacheConfig, SQLModelCache
from sqlmodel_cache._effects import Begin, End
from sqlmodel_cache._keys import SHARDS
from sqlmodel_cache._writeset import MAX_NAMED_ROWS

MODELS = [Hero, Team, Gadget, Code, Token, Day, Label, Mixed, Far, Tag, Robot, Part, Post]

Run = Callable[[Session], Any]


def upsert(session: Session, model: Any) -> Any:
    """Return the dialect's own INSERT."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    return dialect.insert(model)


def upsert_tag(*pks: int) -> Run:
    """Return an upsert by primary key."""

    def run(session: Session) -> None:
        add = upsert(session, Tag).values([{"id": pk, "code": f"c{pk}", "label": "n"} for pk in pks])
        session.execute(add.on_conflict_do_update(index_elements=["id"], set_={"label": add.excluded.label}))

    return run


def upsert_many(session: Session) -> None:
    """Upsert by primary key, with the rows as parameters."""
    add = upsert(session, table_of(Tag))
    add = add.on_conflict_do_update(index_elements=[Tag.id], set_={"label": add.excluded.label})
    session.execute(add, [{"id": pk, "code": f"c{pk}", "label": "n"} for pk in (1, 2)])


def upsert_gadget(session: Session) -> None:
    """Upsert by a composite primary key."""
    add = upsert(session, Gadget).values(owner="a", number=1, name="n")
    session.execute(add.on_conflict_do_update(index_elements=["number", "owner"], set_={"name": "n"}))


def upsert_by_code(session: Session) -> None:
    """Upsert by something else: nothing tells which row it is."""
    add = upsert(session, Tag).values(id=9, code="c1", label="n")
    session.execute(add.on_conflict_do_update(index_elements=["code"], set_={"label": "n"}))


def upsert_pk(session: Session) -> None:
    """Upsert by primary key that gives the row another one."""
    add = upsert(session, Tag).values(id=3, code="c9", label="n")
    session.execute(add.on_conflict_do_update(index_elements=["id"], set_={"id": 9}))


BY_AGE = update(table_of(Hero)).where(table_of(Hero).c.id == bindparam("pk")).values(age=bindparam("years"))

ROWS_KNOWN: dict[str, tuple[Run, list[Row]]] = {
    "flush-update": (lambda s: setattr(s.get(Hero, 1), "age", 7), rows(Hero, 1)),
    "flush-delete": (lambda s: s.delete(s.get(Code, "one")), rows(Code, "one")),
    "flush-pk-change": (lambda s: setattr(s.get(Code, "one"), "id", "nine"), rows(Code, "one")),
    "flush-composite": (lambda s: setattr(s.get(Gadget, ("a", 2)), "name", "n"), rows(Gadget, ("a", 2))),
    "orm-pk": (lambda s: s.execute(update(Hero).where(Hero.id == 1).values(age=7)), rows(Hero, 1)),
    "orm-pk-in": (lambda s: s.execute(update(Hero).where(Hero.id.in_([1, 3])).values(age=7)), rows(Hero, 1, 3)),
    "orm-pk-and": (lambda s: s.execute(delete(Tag).where(Tag.id == 3, Tag.code == "c3")), rows(Tag, 3)),
    "orm-renamed": (lambda s: s.execute(update(Label).where(Label.id == 1).values(name="n")), rows(Label, 1)),
    "orm-text": (lambda s: s.execute(delete(Code).where(Code.id == "one")), rows(Code, "one")),
    "orm-text-in": (lambda s: s.execute(delete(Code).where(Code.id.in_(["one"]))), rows(Code, "one")),
    "orm-uuid": (lambda s: s.execute(delete(Token).where(Token.id == UUIDS[0])), rows(Token, UUIDS[0])),
    "orm-date": (lambda s: s.execute(delete(Day).where(Day.id == DAYS[1])), rows(Day, DAYS[1])),
    "orm-quoted": (lambda s: s.execute(update(Mixed).where(Mixed.id == 2).values(name="n")), rows(Mixed, 2)),
    "orm-schema": (lambda s: s.execute(update(Far).where(Far.id == 2).values(name="n")), rows(Far, 2)),
    "orm-composite": (
        lambda s: s.execute(update(Gadget).where(Gadget.owner == "a", Gadget.number == 1).values(name="n")),
        rows(Gadget, ("a", 1)),
    ),
    "orm-by-pk": (lambda s: s.execute(update(Hero), [{"id": 1, "age": 7}, {"id": 2, "age": 7}]), rows(Hero, 1, 2)),
    "orm-returning": (
        lambda s: s.execute(update(Hero).where(Hero.id == 1).values(age=7).returning(Hero)).all(),
        rows(Hero, 1),
    ),
    "orm-returned": (
        lambda s: s.execute(update(Hero).where(Hero.name == "Ann").values(age=7).returning(Hero.name, Hero.id)).all(),
        rows(Hero, 1),
    ),
    "orm-returned-entities": (
        lambda s: s.execute(update(Hero).where(Hero.name == "Ann").values(age=7).returning(Hero)).scalars().all(),
        rows(Hero, 1),
    ),
    "core-returned": (
        lambda s: s.connection().execute(delete(table_of(Tag)).where(Tag.code == "c3").returning(Tag.id)).all(),
        rows(Tag, 3),
    ),
    "core-returned-composite": (
        lambda s: s.execute(
            update(Gadget).where(Gadget.number == 1).values(name="n").returning(Gadget.number, Gadget.owner)
        ).all(),
        rows(Gadget, ("a", 1), ("b", 1)),
    ),
    "bulk-mappings": (lambda s: s.bulk_update_mappings(Hero, [{"id": 3, "age": 7}]), rows(Hero, 3)),
    "core-executemany": (
        lambda s: s.connection().execute(BY_AGE, [{"pk": 1, "years": 1}, {"pk": 3, "years": 1}]),
        rows(Hero, 1, 3),
    ),
    "upsert": (upsert_tag(1), rows(Tag, 1)),
    "upsert-rows": (upsert_tag(1, 3), rows(Tag, 1, 3)),
    "upsert-executemany": (upsert_many, rows(Tag, 1, 2)),
    "upsert-composite": (upsert_gadget, rows(Gadget, ("a", 1))),
}

TABLE_KNOWN: dict[str, tuple[Run, list[Any]]] = {
    "other-column": (lambda s: s.execute(update(Hero).where(Hero.name == "Ann").values(age=7)), [Hero]),
    "pk-or": (lambda s: s.execute(update(Hero).where((Hero.id == 1) | (Hero.id == 2)).values(age=7)), [Hero]),
    "part-of-pk": (lambda s: s.execute(update(Gadget).where(Gadget.owner == "a").values(name="n")), [Gadget]),
    "pk-computed": (lambda s: s.execute(update(Label).where(Label.id == 1).values(id=Label.id + 8)), [Label]),
    "alias": (
        lambda s: s.execute(update(aliased(Hero)).values(age=7), execution_options={"synchronize_session": False}),
        [Hero],
    ),
    "text": (lambda s: s.execute(text("UPDATE w_hero SET age = 7 WHERE id = 1")), [Hero]),
    "returned-not-the-pk": (
        lambda s: s.execute(update(Hero).where(Hero.name == "Ann").values(age=7).returning(Hero.age.label("id"))).all(),
        [Hero],
    ),
    "returned-new-pk": (
        lambda s: s.execute(update(Label).where(Label.name == "one").values(id=8).returning(Label.id)).all(),
        [Label],
    ),
    "upsert-by-unique": (upsert_by_code, [Tag]),
    "upsert-moves-pk": (upsert_pk, [Tag]),
    "too-many-rows": (
        lambda s: s.connection().execute(BY_AGE, [{"pk": pk, "years": 1} for pk in range(10_001)]),
        [Hero],
    ),
    "parent-deleted": (lambda s: s.execute(delete(Team).where(Team.id == 1)), [Hero, Robot, Part, Post]),
    "parent-pk": (lambda s: s.execute(update(Team).where(Team.id == 1).values(id=9)), [Hero, Post]),
}

INSERTS: dict[str, Run] = {
    "flush": lambda s: s.add(Hero(name="n")),
    "flush-known-pk": lambda s: s.add(Hero(id=9, name="n")),
    "many": lambda s: s.add_all([Hero(name="n") for _ in range(5)]),
    "merge": lambda s: s.merge(Hero(id=9, name="n")),
    "bulk": lambda s: s.execute(insert(Hero), [{"name": "n", "age": 1}, {"name": "n", "age": 1}]),
    "core": lambda s: s.connection().execute(insert(table_of(Hero)).values(name="n", age=1)),
    "select": lambda s: s.execute(insert(Hero).from_select(["name", "age"], select(Hero.name, Hero.age))),
    "expression": lambda s: s.execute(insert(Hero).values(id=literal(4) + 5, name="n", age=1)),
    "do-nothing": lambda s: s.execute(upsert(s, Tag).values(id=1, code="c1", label="n").on_conflict_do_nothing()),
    "text": lambda s: s.execute(text("INSERT INTO w_hero (id, name, age) VALUES (9, 'n', 1)")),
}

# Each gives the keys 1 and 2 to new heroes, or one of them.
GIVEN_KEYS: dict[str, Run] = {
    "flush": lambda s: s.add(Hero(id=1, name="n")),
    "flush-many": lambda s: s.add_all([Hero(id=pk, name="n") for pk in (1, 2)]),
    "merge": lambda s: s.merge(Hero(id=1, name="n")),
    "bulk": lambda s: s.execute(insert(Hero), [{"id": pk, "name": "n", "age": 1} for pk in (1, 2)]),
    "bulk-returning": lambda s: s.execute(insert(Hero).returning(Hero), [{"id": 1, "name": "n", "age": 1}]).all(),
    "mappings": lambda s: s.bulk_insert_mappings(Hero, [{"id": 1, "name": "n", "age": 1}]),
    "values": lambda s: s.execute(insert(Hero).values([{"id": pk, "name": "n", "age": 1} for pk in (1, 2)])),
    "core": lambda s: s.connection().execute(insert(table_of(Hero)).values(id=2, name="n", age=1)),
    "beside-a-change": lambda s: (s.add(Hero(id=1, name="n")), setattr(s.get(Team, 1), "name", "n")),
    "too-many": lambda s: s.connection().execute(
        insert(table_of(Hero)), [{"id": pk, "name": "n", "age": 1} for pk in (1, 2, *range(100, 100 + MAX_NAMED_ROWS))]
    ),
}

NOBODY: dict[str, Run] = {
    "flush": lambda s: s.add(Idle(id=9, name="n")),
    "flush-delete": lambda s: s.delete(s.get(Idle, 1)),
    "core": lambda s: s.execute(update(Idle).values(name="n")),
    "secondary": lambda s: s.execute(delete(HeroTag)),
    "text": lambda s: s.execute(text("DELETE FROM w_idle")),
    "select": lambda s: s.execute(select(Hero)).all(),
    "locking": lambda s: s.execute(select(Hero).with_for_update()).all(),
    "text-select": lambda s: s.execute(text("SELECT replace(name, 'a', 'b') AS updated FROM w_hero")).all(),
    "cte": lambda s: s.execute(select(select(Hero.id).cte("e").c.id)).all(),
    "ddl": lambda s: s.execute(text("CREATE TEMPORARY TABLE w_idle_too (id int)")),
}


@pytest.fixture
def transport() -> Recorder:
    """A configured transport that keeps what it is asked."""
    recorder = Recorder()
    SQLModelCache.configure(recorder)
    return recorder


def commit(engine: Engine, run: Run) -> None:
    """Run a write and commit it."""
    with Session(engine) as session:
        run(session)
        session.commit()


@pytest.mark.parametrize("name", ROWS_KNOWN)
def test_known_rows_are_all_that_is_invalidated(engine: Engine, transport: Recorder, name: str) -> None:
    """Where the primary keys are told, these rows are fenced and every other row still hits."""
    run, changed = ROWS_KNOWN[name]
    before = warm(engine, MODELS)
    transport.take()
    commit(engine, run)
    begins = [effect for effect in transport.take() if isinstance(effect, Begin)]
    assert [effect.keys.tables for effect in begins] == [()]
    assert missed(engine, before) == [key for key in before if key in changed]


def test_rows_that_were_returned_are_still_the_callers(engine: Engine, transport: Recorder) -> None:
    """RETURNING names the rows to the library and gives the caller all of them; none returned is none written."""
    before = warm(engine, MODELS)
    transport.take()
    with Session(engine) as session:
        changed = update(Hero).where(Hero.age > 30).values(age=Hero.age + 1).returning(Hero.id, Hero.age)
        assert sorted(session.execute(changed).all()) == [(2, 41), (3, 51)]
        session.expunge_all()
        assert session.get_one(Hero, 2).age == 41
        session.rollback()
        result = session.execute(delete(Hero).where(Hero.age > 99).returning(Hero))
        assert result.scalars().all() == []
        session.commit()
    assert [effect for effect in transport.take() if isinstance(effect, Begin)] == []
    assert missed(engine, before) == []


@pytest.mark.parametrize("name", TABLE_KNOWN)
def test_unknown_rows_invalidate_their_tables(engine: Engine, transport: Recorder, name: str) -> None:
    """Where they are not told, the table is fenced by a fixed number of keys, and no other table."""
    run, tables = TABLE_KNOWN[name]
    before = warm(engine, MODELS)
    transport.take()
    commit(engine, run)
    (begin,) = [effect for effect in transport.take() if isinstance(effect, Begin)]
    assert len(begin.keys.tables) == SHARDS * len(tables)
    named = len(begin.keys.rows)
    absent = missed(engine, before)
    assert {model for model, _ in absent if model is not Team} == set(tables)
    assert [model for model, _ in absent].count(Team) <= named
    assert all(key in absent for key in before if key[0] in tables)


@pytest.mark.parametrize("name", INSERTS)
def test_insert_fences_nothing(engine: Engine, transport: Recorder, name: str) -> None:
    """Nobody can have cached a row that did not exist: a commit of inserts sets no fence, and spares what is cached."""
    before = warm(engine, MODELS)
    transport.take()
    with Session(engine) as session:
        INSERTS[name](session)
        session.flush()
        bypasses = SQLModelCache.stats().bypasses
        own = in_database(session.connection(), [Hero, Tag])
        assert got(session.connection(), own) == own
        new = [key for key in own if key not in before]
        assert SQLModelCache.stats().bypasses >= bypasses + len(new)
        session.commit()
    assert not any(isinstance(effect, Begin) for effect in transport.take())
    assert missed(engine, before) == (rows(Tag, 1) if name == "do-nothing" else [])  # it may have inserted that row
    after = in_database(engine, MODELS)
    assert got(engine, after) == after


@pytest.mark.parametrize("name", GIVEN_KEYS)
def test_row_that_outsiders_have_deleted_is_not_hit_when_it_is_inserted_again(
    engine: Engine, transport: Recorder, name: str
) -> None:
    """The cache holds a row that psql has deleted: a commit that gives its key to another says so in one round trip."""
    before = warm(engine, MODELS)
    outside = engine.raw_connection()
    outside.cursor().execute("DELETE FROM w_hero WHERE id IN (1, 2)")
    outside.commit()
    outside.close()
    assert missed(engine, before) == []
    transport.take()
    commit(engine, GIVEN_KEYS[name])
    writes = [type(effect) for effect in transport.take() if isinstance(effect, Begin | End)]
    assert writes == ([End] if name not in ("beside-a-change", "too-many") else [Begin, End])
    truth = in_database(engine, [Hero])
    again = [key for key in rows(Hero, 1, 2) if key in truth]
    assert again
    assert got(engine, again) == {key: truth[key] for key in again}


@pytest.mark.parametrize("name", ["flush", "beside-a-change"])
def test_insert_that_the_cache_does_not_hear_of_is_owed(engine: Engine, transport: Recorder, name: str) -> None:
    """Until it has been told, this process reads the row from the database; a COMMIT that fails owes no new row."""
    warm(engine, [Hero])
    outside = engine.raw_connection()
    outside.cursor().execute("DELETE FROM w_hero WHERE id = 1")
    outside.commit()
    outside.close()
    transport.deaf_to = End
    commit(engine, GIVEN_KEYS[name])
    assert SQLModelCache.stats().owed
    assert got(engine, rows(Hero, 1))[Hero, 1][1] == "n"


@pytest.mark.parametrize("name", NOBODY)
def test_statement_that_matters_to_nobody_costs_nothing(engine: Engine, transport: Recorder, name: str) -> None:
    """No effect is sent for a table that is not cached, nor for a SELECT."""
    commit(engine, NOBODY[name])
    assert transport.take() == []


def test_harmless_update_of_a_parent_spares_its_children(engine: Engine, transport: Recorder) -> None:
    """ON UPDATE CASCADE matters only when a column is set to which a foreign key refers."""
    before = warm(engine, MODELS)
    commit(engine, lambda s: setattr(s.get(Team, 1), "name", "n"))
    commit(engine, lambda s: s.execute(update(Team).where(Team.id == 2).values(name="n")))
    assert missed(engine, before) == rows(Team, 1, 2)


class Padded(LegacyBase):
    """Values of CHAR are equal to shorter ones."""

    __tablename__ = "w_padded"
    __cache_config__ = CacheConfig()
    id: Mapped[str] = mapped_column(CHAR(6), primary_key=True)
    name: Mapped[str]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_padded_text_names_no_row(engine: Engine, transport: Recorder) -> None:
    """`= 'bob'` changes the row 'bob   ', so a write by such a key counts for the table."""
    commit(engine, lambda s: s.add(Padded(id="bob", name="x")))
    warm(engine, [Padded])
    commit(engine, lambda s: s.execute(update(Padded).where(Padded.id == "bob").values(name="y")))
    assert got(engine, rows(Padded, "bob   ")) == {(Padded, "bob   "): ("bob   ", "y")}
    commit(engine, lambda s: s.execute(delete(Padded)))


class Chosen(TypeDecorator[str]):
    """Text whose type a decorator chooses, as another one for each database."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return CHAR(6) if dialect.name == "postgresql" else String(collation="NOCASE")


class Folded(LegacyBase):
    """On each database the key has a type that takes other text for the same."""

    __tablename__ = "w_folded"
    __cache_config__ = CacheConfig()
    id: Mapped[str] = mapped_column(
        String().with_variant(CHAR(6), "postgresql").with_variant(String(collation="NOCASE"), "sqlite"),
        primary_key=True,
    )
    name: Mapped[str]


class Chose(LegacyBase):
    """The same, by a decorator."""

    __tablename__ = "w_chose"
    __cache_config__ = CacheConfig()
    id: Mapped[str] = mapped_column(Chosen, primary_key=True)
    name: Mapped[str]


@pytest.mark.parametrize("model", [Folded, Chose])
def test_variant_that_equals_other_text_names_no_row(engine: Engine, transport: Recorder, model: Any) -> None:
    """The type that a column has on this database decides, not the generic one."""
    stored, other = ("bob   ", "bob") if engine.dialect.name == "postgresql" else ("bob", "BOB")
    commit(engine, lambda s: s.execute(delete(model)))
    commit(engine, lambda s: s.add(model(id="bob", name="x")))
    warm(engine, [model])
    commit(engine, lambda s: s.execute(update(model.__table__).where(model.__table__.c.id == other).values(name="y")))
    assert got(engine, rows(model, stored)) == {(model, stored): (stored, "y")}
    commit(engine, lambda s: s.execute(delete(model)))


class Lower(TypeDecorator[str]):
    """Binds other text than it is given."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.lower()


class Lowered(Lower):
    """Lets the database do it."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value

    def bind_expression(self, bindparam: Any) -> Any:
        return func.lower(bindparam)


@pytest.mark.parametrize(
    "named",
    [
        lambda c: c == literal("BOB", Lower()),
        lambda c: c == literal("BOB", Lowered()),
        lambda c: c == bindparam("who", "BOB", type_=Lower()),
        lambda c: c.in_(bindparam("who", ["BOB"], type_=Lower(), expanding=True)),
    ],
    ids=["literal", "expression", "bindparam", "expanding"],
)
def test_value_that_its_type_changes_names_no_row(engine: Engine, transport: Recorder, named: Any) -> None:
    """A value may be given a type of its own, which binds something else."""
    commit(engine, lambda s: s.execute(delete(Code)))
    commit(engine, lambda s: s.add(Code(id="bob", name="x")))
    warm(engine, [Code])
    column: Any = table_of(Code).c.id
    commit(engine, lambda s: s.execute(update(table_of(Code)).where(named(column)).values(name="y")))
    assert got(engine, rows(Code, "bob")) == {(Code, "bob"): ("bob", "y")}


class Unique(LegacyBase):
    """A conflict removes the older row."""

    __tablename__ = "w_unique"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True, sqlite_on_conflict_unique="REPLACE")


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "statement",
    [insert(Unique).values(id=2, code="a"), text("INSERT INTO w_unique VALUES (2, 'a')")],
    ids=["construct", "text"],
)
def test_insert_that_replaces_counts_as_a_change(engine: Engine, transport: Recorder, statement: Any) -> None:
    """On SQLite a table may declare that a conflict deletes the row that was there."""
    commit(engine, lambda s: s.execute(delete(Unique)))
    commit(engine, lambda s: s.add(Unique(id=1, code="a")))
    warm(engine, [Unique])
    commit(engine, lambda s: s.execute(statement))
    assert got(engine, rows(Unique, 1, 2)) == {(Unique, 2): (2, "a")}
    commit(engine, lambda s: s.execute(delete(Unique)))
