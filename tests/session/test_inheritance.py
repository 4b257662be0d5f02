"""Mapped inheritance: a get of any class of a family is a hit, of the right class, and any write to it is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Log, Store
from sqlalchemy import Column, Engine, ForeignKey, Integer, Table, case, delete, insert, inspect, or_, text, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.declarative import AbstractConcreteBase, ConcreteBase
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, foreign, mapped_column, relationship

from sqlmodel_cache import CacheConfig, SQLModelCache

pytestmark = pytest.mark.parametrize("engine", ["sqlite", "postgresql+asyncpg"], indirect=True)
IN_MEMORY = pytest.mark.parametrize("store", ["memory"], indirect=True)


class Base(DeclarativeBase):
    """Plain SQLAlchemy."""


class Person(Base):
    """The base of joined inheritance."""

    __tablename__ = "i_person"
    __cache_config__ = CacheConfig()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]


class Engineer(Person):
    """Has a table of its own, and its own name for the key."""

    __tablename__ = "i_engineer"
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012
    engineer_id: Mapped[int] = mapped_column(ForeignKey("i_person.id"), primary_key=True)
    tool: Mapped[str]


class Lead(Engineer):
    """A third level."""

    __tablename__ = "i_lead"
    __mapper_args__ = {"polymorphic_identity": "lead"}  # noqa: RUF012
    lead_id: Mapped[int] = mapped_column(ForeignKey("i_engineer.engineer_id"), primary_key=True)
    team: Mapped[str]


class Manager(Person):
    """A sibling, in its parent's table, whose column a get of the base fetches, too."""

    __mapper_args__ = {"polymorphic_identity": "manager", "polymorphic_load": "inline"}  # noqa: RUF012
    budget: Mapped[int | None]


class Pilot(Person):
    """A sibling whose table a get of the base joins."""

    __tablename__ = "i_pilot"
    __mapper_args__ = {"polymorphic_identity": "pilot", "polymorphic_load": "inline"}  # noqa: RUF012
    pilot_id: Mapped[int] = mapped_column(ForeignKey("i_person.id"), primary_key=True)
    licence: Mapped[str]


class Hermit(Person):
    """A sibling that is not cached."""

    __cache_config__ = CacheConfig(enabled=False)
    __mapper_args__ = {"polymorphic_identity": "hermit"}  # noqa: RUF012


class Owner(Person):
    """A sibling with an eager relationship."""

    __mapper_args__ = {"polymorphic_identity": "owner"}  # noqa: RUF012
    boss_id: Mapped[int | None] = mapped_column(ForeignKey("i_person.id"))
    boss: Mapped[Person | None] = relationship(remote_side="Person.id", lazy="selectin")


class Late(Person):
    """A sibling that is loaded by a second SELECT."""

    __mapper_args__ = {"polymorphic_identity": "late", "polymorphic_load": "selectin"}  # noqa: RUF012
    hour: Mapped[int | None]


class Shed(Base):
    """A concrete class, without a union."""

    __tablename__ = "i_shed"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Barn(Shed):
    """Another, with a table of its own."""

    __tablename__ = "i_barn"
    __mapper_args__ = {"concrete": True}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    cows: Mapped[int]


class Boat(ConcreteBase, Base):
    """A concrete class that is loaded from a union."""

    __tablename__ = "i_boat"
    __cache_config__ = CacheConfig()
    __mapper_args__ = {"polymorphic_identity": "boat", "concrete": True}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Ferry(Boat):
    """Is loaded from a union, too."""

    __tablename__ = "i_ferry"
    __mapper_args__ = {"polymorphic_identity": "ferry", "concrete": True}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    cars: Mapped[int]


class Odd(Base):
    """Its subclasses are told apart by an expression."""

    __tablename__ = "i_odd"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    size = mapped_column(Integer)
    __mapper_args__ = {"polymorphic_on": case((size > 1, "big"), else_="small"), "polymorphic_identity": "small"}  # noqa: RUF012


def make_rows(engine: Engine) -> None:
    """Insert one row of each class."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(
            [
                Person(id=1, name="p"),
                Engineer(id=2, name="e", tool="saw"),
                Lead(id=3, name="l", tool="pen", team="red"),
                Manager(id=4, name="m", budget=7),
                Hermit(id=5, name="h"),
                Owner(id=6, name="o"),
                Late(id=7, name="late", hour=9),
                Pilot(id=8, name="pilot", licence="A"),
                Shed(id=1, label="s"),
                Barn(id=1, label="b", cows=3),
                Boat(id=1, label="b"),
                Ferry(id=2, label="f", cars=3),
                Odd(id=1, size=1),
            ]
        )
        session.commit()


def _get(engine: Engine, class_: type, pk: int) -> dict[str, Any] | None:
    """Return what a get in a new session leaves of an object."""
    with Session(engine) as session:
        try:
            found: Any = session.get(class_, pk)
        except InvalidRequestError as refused:  # a row of another class than its tables
            return {"error": str(refused)}
        if found is None:
            return None
        state: Any = inspect(found)
        return {
            "class": type(found),
            "loaded": {key: value for key, value in found.__dict__.items() if key != "_sa_instance_state"},
            "order": list(found.__dict__),
            "unloaded": state.unloaded,
            "expired": set(state.expired_attributes),
            "key": state.key,
            "path": state.load_path,
        }


HITS: list[tuple[type, int, type]] = [
    (Person, 1, Person),
    (Person, 2, Engineer),
    (Person, 3, Lead),
    (Person, 4, Manager),
    (Engineer, 2, Engineer),
    (Engineer, 3, Lead),
    (Lead, 3, Lead),
    (Manager, 4, Manager),
    (Late, 7, Late),
    (Person, 8, Pilot),
    (Pilot, 8, Pilot),
    (Shed, 1, Shed),
    (Barn, 1, Barn),
]
TO_THE_DATABASE: list[tuple[type, int, type | None]] = [
    (Person, 5, Hermit),
    (Hermit, 5, Hermit),
    (Person, 6, Owner),
    (Owner, 6, Owner),
    (Person, 7, Late),
    (Boat, 1, Boat),
    (Ferry, 2, Ferry),
    (Odd, 1, Odd),
    (Lead, 2, None),
    (Manager, 1, None),
    (Engineer, 4, None),
]


def _name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize(("asked", "pk", "found"), HITS, ids=_name)
def test_hit_is_the_object_that_a_select_makes(
    engine: Engine, store: Store, sql: Log, asked: type, pk: int, found: type
) -> None:
    """The class of the row, its loaded and its unloaded attributes, and what is left to later loads."""
    make_rows(engine)
    truth = _get(engine, asked, pk)
    assert truth is not None
    assert truth["class"] is found
    SQLModelCache.configure(store.transport)
    assert _get(engine, asked, pk) == truth
    sql.take()
    assert _get(engine, asked, pk) == truth
    assert sql.take() == []
    assert SQLModelCache.stats().hits == 1


@IN_MEMORY
@pytest.mark.parametrize(("asked", "pk", "found"), TO_THE_DATABASE, ids=_name)
def test_what_cannot_be_reproduced_is_read_from_the_database(
    engine: Engine, store: Store, asked: type, pk: int, found: type | None
) -> None:
    """A refused class, a class that another get may find but the cache not hold, and a sibling, which is None."""
    make_rows(engine)
    SQLModelCache.configure(store.transport)
    for _ in range(2):
        loaded = _get(engine, asked, pk)
        assert (loaded and loaded["class"]) is found
    assert SQLModelCache.stats().hits == 0
    assert SQLModelCache.stats().fills == 0


def test_gets_of_several_classes_share_the_row(engine: Engine, cache: Store, sql: Log) -> None:
    """A row is kept as each class that was asked for; each get hits its own, and the identity is one."""
    make_rows(engine)
    truth = {asked: _get(engine, asked, 3) for asked in (Person, Engineer, Lead)}
    sql.take()
    assert {asked: _get(engine, asked, 3) for asked in truth} == truth
    assert sql.take() == []
    with Session(engine) as session:
        lead = session.get(Person, 3)
        assert session.get(Lead, 3) is lead
        assert session.get(Manager, 3) is None
        assert sql.take() == []
        assert isinstance(lead, Lead)
        assert (lead.team, lead.tool) == ("red", "pen")
        assert len(sql.take()) == 1


WRITES: dict[str, Callable[[Session], object]] = {
    "flush of the base's column": lambda session: setattr(session.get_one(Lead, 3), "name", "new"),
    "flush of the middle's column": lambda session: setattr(session.get_one(Lead, 3), "tool", "new"),
    "flush of the last's column": lambda session: setattr(session.get_one(Person, 3), "team", "new"),
    "update of the base": lambda session: session.execute(update(Person).where(Person.id == 3).values(name="new")),
    "update of the middle table": lambda session: session.execute(
        update(Engineer.__table__).where(Engineer.__table__.c.engineer_id == 3).values(tool="new")  # type: ignore[arg-type]
    ),
    "update of the last table": lambda session: session.execute(update(Lead.__table__).values(team="new")),  # type: ignore[arg-type]
    "text on the middle table": lambda session: session.execute(text("UPDATE i_engineer SET tool = 'new'")),
    "text on the last table": lambda session: session.execute(text("UPDATE i_lead SET team = 'new'")),
    "delete of the last table's row": lambda session: session.execute(
        delete(Lead.__table__).where(Lead.__table__.c.lead_id == 3)  # type: ignore[arg-type]
    ),
    "delete": lambda session: session.delete(session.get_one(Lead, 3)),
    "change of class": lambda session: session.execute(text("UPDATE i_person SET kind = 'engineer' WHERE id = 3")),
}


@IN_MEMORY
@pytest.mark.parametrize("name", WRITES)
def test_write_to_any_table_of_the_family_is_seen(engine: Engine, cache: Store, name: str) -> None:
    """Whichever table of a row is written, every get of every class reads it anew, and finds what SELECT finds."""
    make_rows(engine)
    for asked in (Person, Engineer, Lead):
        assert _get(engine, asked, 3) is not None
    with Session(engine) as session:
        WRITES[name](session)
        session.commit()
    hits = SQLModelCache.stats().hits
    after = [_get(engine, asked, 3) for asked in (Person, Engineer, Lead)]
    assert SQLModelCache.stats().hits == hits
    SQLModelCache.reset()
    assert after == [_get(engine, asked, 3) for asked in (Person, Engineer, Lead)]


@IN_MEMORY
def test_part_of_a_row_that_is_inserted_later_is_seen(engine: Engine, cache: Store) -> None:
    """An outer join finds a row whose second half is missing. The INSERT of that half changes the row."""
    make_rows(engine)
    with Session(engine) as session:
        session.execute(text("INSERT INTO i_person (id, kind, name) VALUES (9, 'pilot', 'half')"))
        session.commit()
    for _ in range(2):
        half = _get(engine, Person, 9)
        assert half is not None
        assert half["loaded"]["licence"] is None
    assert SQLModelCache.stats().hits == 1
    with Session(engine) as session:
        session.execute(insert(Pilot.__table__), {"pilot_id": 9, "licence": "B"})  # type: ignore[arg-type]
        session.commit()
    whole = _get(engine, Person, 9)
    assert whole is not None
    assert whole["loaded"]["licence"] == "B"


@IN_MEMORY
def test_named_rows_of_the_family_are_fenced_alone(engine: Engine, cache: Store) -> None:
    """A flush, or a statement with the key, on a subclass's table leaves other rows cached."""
    make_rows(engine)
    assert _get(engine, Person, 2) is not None
    assert _get(engine, Person, 3) is not None
    for statement in (
        update(Engineer.__table__).where(Engineer.__table__.c.engineer_id == 3).values(tool="x"),  # type: ignore[arg-type]
        update(Lead.__table__).where(Lead.__table__.c.lead_id == 3).values(team="x"),  # type: ignore[arg-type]
    ):
        with Session(engine) as session:
            session.execute(statement)
            session.commit()
    with Session(engine) as session:
        lead = session.get_one(Lead, 3)
        lead.tool = lead.team = "y"
        session.commit()
    hits = SQLModelCache.stats().hits
    assert _get(engine, Person, 2) is not None
    assert SQLModelCache.stats().hits == hits + 1


@IN_MEMORY
def test_concrete_classes_have_rows_of_their_own(engine: Engine, cache: Store) -> None:
    """A write to one concrete class leaves the other's rows cached; equal keys are two rows."""
    make_rows(engine)
    assert _get(engine, Shed, 1) is not None
    barn = _get(engine, Barn, 1)
    with Session(engine) as session:
        session.get_one(Shed, 1).label = "new"
        session.commit()
    hits = SQLModelCache.stats().hits
    assert _get(engine, Barn, 1) == barn
    assert SQLModelCache.stats().hits == hits + 1
    shed = _get(engine, Shed, 1)
    assert shed is not None
    assert shed["loaded"]["label"] == "new"


@IN_MEMORY
def test_uncommitted_part_of_a_row_is_nobody_elses(engine: Engine, cache: Store) -> None:
    """A transaction that wrote a subclass's table neither hits nor fills the row through any class."""
    make_rows(engine)
    assert _get(engine, Person, 3) is not None
    with Session(engine) as session:
        session.execute(update(Lead.__table__).where(Lead.__table__.c.lead_id == 3).values(team="mine"))  # type: ignore[arg-type]
        lead = session.get_one(Lead, 3)
        assert lead.team == "mine"
        session.rollback()
    with Session(engine) as session:
        assert session.get_one(Lead, 3).team == "red"


@IN_MEMORY
def test_load_events_of_the_found_class_see_the_row_first(engine: Engine, cache: Store) -> None:
    """A load listener of a subclass that changes what was loaded changes no cached row."""
    make_rows(engine)
    from sqlalchemy import event

    def shout(target: Any, context: object) -> None:
        target.__dict__["name"] = target.__dict__["name"].upper()

    event.listen(Engineer, "load", shout, propagate=True)
    try:
        for _ in range(3):
            found = _get(engine, Person, 3)
            assert found is not None
            assert found["loaded"]["name"] == "L"
        assert SQLModelCache.stats().hits == 2
    finally:
        event.remove(Engineer, "load", shout)
    after = _get(engine, Person, 3)
    assert after is not None
    assert after["loaded"]["name"] == "l"


@IN_MEMORY
def test_class_that_is_mapped_later_disturbs_nobody(engine: Engine, cache: Store) -> None:
    """A base whose mapping waits for its subclasses is no obstacle to configure(), to a write, or to a get."""

    class Later(DeclarativeBase):
        pass

    class Root(AbstractConcreteBase, Later):
        pass

    class Leaf(Root):
        __tablename__ = "i_leaf"
        __cache_config__ = CacheConfig()
        __mapper_args__ = {"concrete": True, "polymorphic_identity": "leaf"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)

    SQLModelCache.configure(cache.transport)
    configure_mappers()
    Later.metadata.drop_all(engine)
    Later.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Leaf(id=1))
        session.commit()
    for _ in range(2):
        leaf = _get(engine, Leaf, 1)
        assert leaf is not None
        assert leaf["class"] is Leaf


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # noload
@pytest.mark.parametrize("lazy", ["joined", "selectin", "subquery", "immediate", "noload", False])
def test_relationship_that_the_load_sets_is_refused(engine: Engine, lazy: Any) -> None:
    """Each strategy with which a SELECT of the class sets the attribute itself."""

    class Own(DeclarativeBase):
        pass

    class Parent(Own):
        __tablename__ = "i_parent"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(Own):
        __tablename__ = "i_child"
        __cache_config__ = CacheConfig()
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("i_parent.id"))
        parent: Mapped[Parent] = relationship(lazy=lazy)

    SQLModelCache.configure()
    found = SQLModelCache.explain(Child)
    assert not found.cached
    assert "'parent'" in str(found.reason)


@IN_MEMORY
def test_classes_of_one_name_are_two_classes(engine: Engine, cache: Store) -> None:
    """Two modules may each have a class of that name, with families of their own on the same tables."""
    make_rows(engine)

    def family() -> tuple[Any, Any]:
        class Own(DeclarativeBase):
            pass

        class Person(Own):
            __tablename__ = "i_person"
            __cache_config__ = CacheConfig()
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012
            id: Mapped[int] = mapped_column(primary_key=True)
            kind: Mapped[str]

        class Engineer(Person):
            __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012

        return Person, Engineer

    families = [(Person, Engineer), family(), family()]
    for _ in range(3):
        for person, engineer in families:
            found = _get(engine, person, 2)
            assert found is not None
            assert found["class"] is engineer
            assert ("name" in found["loaded"]) == (person is Person)
    assert SQLModelCache.stats().hits == 7  # two of the families are alike, and share what is cached
    assert SQLModelCache.stats().corrupt == 0


@IN_MEMORY
def test_family_in_several_schemas_is_refused(engine: Engine, cache: Store) -> None:
    """Keys are named after the first table, schema included; a write to another schema's would miss them."""

    class Own(DeclarativeBase):
        pass

    class Root(Own):
        __tablename__ = "i_root"
        __cache_config__ = CacheConfig()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "root"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

    class Near(Root):
        __mapper_args__ = {"polymorphic_identity": "near"}  # noqa: RUF012

    assert SQLModelCache.explain(Root).cached

    class Far(Root):
        __tablename__ = "i_far"
        __table_args__ = {"schema": "elsewhere"}  # noqa: RUF012
        __mapper_args__ = {"polymorphic_identity": "far", "polymorphic_load": "inline"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(ForeignKey("i_root.id"), primary_key=True)

    for class_ in (Root, Far):
        assert SQLModelCache.explain(class_).reason == "the tables of its family are in several schemas"
    assert SQLModelCache.explain(Near).cached


@IN_MEMORY
def test_base_and_subclass_without_a_discriminator(engine: Engine, cache: Store) -> None:
    """A subclass may have the columns of its base, and yet other rows: those that stand in its table, too."""

    class Own(DeclarativeBase):
        pass

    class User(Own):
        __tablename__ = "i_user"
        __cache_config__ = CacheConfig()
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Admin(User):
        __tablename__ = "i_admin"
        id: Mapped[int] = mapped_column(ForeignKey("i_user.id"), primary_key=True)

    Own.metadata.drop_all(engine)
    Own.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=1, name="one"), Admin(id=2, name="two")])
        session.commit()
    for _ in range(2):
        assert [(_get(engine, User, pk) or {}).get("class") for pk in (1, 2)] == [User, User]
        assert [(_get(engine, Admin, pk) or {}).get("class") for pk in (1, 2)] == [None, Admin]
    assert SQLModelCache.stats().hits == 3


@IN_MEMORY
def test_two_classes_name_the_rows_of_a_table_by_different_columns(engine: Engine, cache: Store) -> None:
    """The row that one class calls 1 is not the row that the other calls 1."""

    class Own(DeclarativeBase):
        pass

    table = Table("i_seat", Own.metadata, Column("id", Integer, primary_key=True), Column("place", Integer))

    class ById(Own):
        __table__ = table
        __cache_config__ = CacheConfig()

    class ByPlace(Own):
        __table__ = table
        __cache_config__ = CacheConfig()
        __mapper_args__ = {"primary_key": [table.c.place]}  # noqa: RUF012

    Own.metadata.drop_all(engine)
    Own.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": 1, "place": 2}, {"id": 2, "place": 1}])
    for _ in range(2):
        with Session(engine) as session:
            assert session.get_one(ById, 1).place == 2
        with Session(engine) as session:
            assert session.get_one(ByPlace, 1).id == 2
    assert SQLModelCache.stats().hits == 2


@IN_MEMORY
def test_subclass_that_is_joined_by_another_column_than_the_key(engine: Engine, cache: Store) -> None:
    """A write to its table names no row of the family: then it counts for all of them."""

    class Own(DeclarativeBase):
        pass

    class Place(Own):
        __tablename__ = "i_place"
        __cache_config__ = CacheConfig()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "place"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str] = mapped_column(unique=True)
        kind: Mapped[str]

    class Harbour(Place):
        __tablename__ = "i_harbour"
        __mapper_args__ = {"polymorphic_identity": "harbour", "polymorphic_load": "inline"}  # noqa: RUF012
        place_code: Mapped[str] = mapped_column(ForeignKey("i_place.code"), primary_key=True)
        depth: Mapped[int]

    Own.metadata.drop_all(engine)
    Own.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Harbour(id=1, code="a", depth=5))
        session.commit()
    table: Any = Harbour.__table__
    for depth in (6, 7):
        for _ in range(2):
            assert _get(engine, Place, 1) is not None
        with Session(engine) as session:
            session.execute(update(table).where(table.c.place_code == "a").values(depth=depth))
            session.commit()
        found = _get(engine, Place, 1)
        assert found is not None
        assert found["loaded"]["depth"] == depth
    assert SQLModelCache.stats().hits == 3


@IN_MEMORY
def test_base_that_is_declared_cached_after_its_subclass(engine: Engine, cache: Store) -> None:
    """All tables that a get of the base may read matter from then on, those of its other subclasses, too."""

    class Own(DeclarativeBase):
        pass

    class Tree(Own):
        __tablename__ = "i_tree"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "tree"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

    class Fir(Tree):
        __tablename__ = "i_fir"
        __cache_config__ = CacheConfig()
        __mapper_args__ = {"polymorphic_identity": "fir"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(ForeignKey("i_tree.id"), primary_key=True)

    class Oak(Tree):
        __tablename__ = "i_oak"
        __mapper_args__ = {"polymorphic_identity": "oak", "polymorphic_load": "inline"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(ForeignKey("i_tree.id"), primary_key=True)
        acorns: Mapped[int]

    Own.metadata.drop_all(engine)
    Own.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Oak(id=1, acorns=1))
        session.commit()
    Tree.__cache_config__ = CacheConfig()  # type: ignore[attr-defined]
    for _ in range(2):
        assert _get(engine, Tree, 1) is not None
    with Session(engine) as session:
        session.execute(update(Oak.__table__).values(acorns=2))  # type: ignore[arg-type]
        session.commit()
    found = _get(engine, Tree, 1)
    assert found is not None
    assert found["loaded"]["acorns"] == 2
    assert SQLModelCache.stats().hits == 1


@IN_MEMORY
def test_subclass_that_is_joined_by_either_of_two_columns(engine: Engine, cache: Store) -> None:
    """An equality that need not be true says nothing of which row of the base a row of the subclass's table is."""

    class Own(DeclarativeBase):
        pass

    class Parcel(Own):
        __tablename__ = "i_parcel"
        __cache_config__ = CacheConfig()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parcel"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        former: Mapped[int]
        kind: Mapped[str]

    class Sent(Parcel):
        __tablename__ = "i_sent"
        sent_id: Mapped[int] = mapped_column(primary_key=True)
        to: Mapped[str]
        __mapper_args__ = {  # noqa: RUF012
            "polymorphic_identity": "sent",
            "polymorphic_load": "inline",
            "inherit_condition": or_(foreign(sent_id) == Parcel.id, foreign(sent_id) == Parcel.former),
        }

    Own.metadata.drop_all(engine)
    Own.metadata.create_all(engine)
    table: Any = Sent.__table__
    with engine.begin() as connection:
        connection.execute(insert(Parcel.__table__).values(id=1, former=7, kind="sent"))  # type: ignore[arg-type]
        connection.execute(insert(table).values(sent_id=7, to="us"))
    for _ in range(2):
        assert _get(engine, Parcel, 1) is not None
    with engine.begin() as connection:
        connection.execute(update(table).where(table.c.sent_id == 7).values(to="them"))
    found = _get(engine, Parcel, 1)
    assert found is not None
    assert found["loaded"]["to"] == "them"
    assert SQLModelCache.stats().hits == 1
