"""Families of classes: a get of any class of the family gives the object, or the None, that a SELECT gives.

`HIT_EXPECTED` says of each family what its second get is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parity.aftermath import AFTERMATHS
from parity.case import Case
from parity.looks import content, outcome, portrait
from parity.runner import Databases, Scenario, World, compare, template
from sqlalchemy import ForeignKey, MetaData, create_engine, inspect, select
from sqlalchemy.ext.declarative import AbstractConcreteBase, DeferredReflection
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    column_property,
    mapped_column,
    polymorphic_union,
    relationship,
    selectin_polymorphic,
)

from sqlmodel_cache import CacheConfig, SQLModelCache


class Base(DeclarativeBase):
    """Keeps the tables out of the other tests'."""

    metadata = MetaData()
    __cache_config__ = CacheConfig()


# single table


class SPerson(Base):
    """The root of a single-table family."""

    __tablename__ = "i_s_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    boss_id: Mapped[int | None] = mapped_column(ForeignKey("i_s_person.id"))
    boss: Mapped[SPerson | None] = relationship(remote_side=id)  # noqa: A003
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class SEngineer(SPerson):
    """Has a column of its own."""

    language: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class SManager(SPerson):
    """Has another."""

    budget: Mapped[int | None]
    secret: Mapped[str | None] = mapped_column(deferred=True)
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class SChief(SManager):
    """A grandchild without columns."""

    __mapper_args__ = {"polymorphic_identity": "chief"}  # noqa: RUF012


# single table, all columns at once


class WPerson(Base):
    """Loads the columns of all subclasses, in a get of the root, too."""

    __tablename__ = "i_w_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {  # noqa: RUF012
        "polymorphic_on": "kind",
        "polymorphic_identity": "person",
        "with_polymorphic": "*",
    }


class WEngineer(WPerson):
    """Inline."""

    language: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class LPerson(Base):
    """Subclasses say how they are loaded."""

    __tablename__ = "i_l_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class LInline(LPerson):
    """With the root's SELECT."""

    language: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "inline", "polymorphic_load": "inline"}  # noqa: RUF012


class LSelectin(LPerson):
    """With another SELECT."""

    budget: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "selectin", "polymorphic_load": "selectin"}  # noqa: RUF012


# joined tables


class JPerson(Base):
    """The root of a joined family."""

    __tablename__ = "i_j_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class JEngineer(JPerson):
    """Its own table, whose key has the same name."""

    __tablename__ = "i_j_engineer"
    id: Mapped[int] = mapped_column(ForeignKey("i_j_person.id"), primary_key=True)
    language: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class JManager(JPerson):
    """Its own table, whose key has another name."""

    __tablename__ = "i_j_manager"
    person_id: Mapped[int] = mapped_column(ForeignKey("i_j_person.id"), primary_key=True)
    budget: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class JChief(JManager):
    """A third table."""

    __tablename__ = "i_j_chief"
    chief_id: Mapped[int] = mapped_column(ForeignKey("i_j_manager.person_id"), primary_key=True)
    car: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "chief"}  # noqa: RUF012


class JSPerson(Base):
    """A joined family with one subclass for each way to load it."""

    __tablename__ = "i_js_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class JSInline(JSPerson):
    """With the root's SELECT."""

    __tablename__ = "i_js_inline"
    id: Mapped[int] = mapped_column(ForeignKey("i_js_person.id"), primary_key=True)
    language: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "inline", "polymorphic_load": "inline"}  # noqa: RUF012


class JSSelectin(JSPerson):
    """With another SELECT."""

    __tablename__ = "i_js_selectin"
    id: Mapped[int] = mapped_column(ForeignKey("i_js_person.id"), primary_key=True)
    budget: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "selectin", "polymorphic_load": "selectin"}  # noqa: RUF012


class JPlain(Base):
    """A joined family without a discriminator."""

    __tablename__ = "i_jp_root"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class JPlainSub(JPlain):
    """Known only by whom one asks for."""

    __tablename__ = "i_jp_sub"
    id: Mapped[int] = mapped_column(ForeignKey("i_jp_root.id"), primary_key=True)
    extra: Mapped[str]


# concrete tables


class CPerson(Base):
    """The root of a concrete family without a union."""

    __tablename__ = "i_c_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class CEngineer(CPerson):
    """A table with all of its columns."""

    __tablename__ = "i_c_engineer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    language: Mapped[str]
    __mapper_args__ = {"concrete": True}  # noqa: RUF012


class UPerson(AbstractConcreteBase, Base):
    """The root is a union."""

    strict_attrs = True
    name: Mapped[str]


class UEngineer(UPerson):
    """One table."""

    __tablename__ = "i_u_engineer"
    id: Mapped[int] = mapped_column(primary_key=True)
    language: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer", "concrete": True}  # noqa: RUF012


class UManager(UPerson):
    """Another."""

    __tablename__ = "i_u_manager"
    id: Mapped[int] = mapped_column(primary_key=True)
    budget: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "manager", "concrete": True}  # noqa: RUF012


# what decides on the class


class EPerson(Base):
    """The discriminator is an SQL expression."""

    __tablename__ = "i_e_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    number: Mapped[int]


class ESub(EPerson):
    """When the number is 7."""

    __mapper_args__ = {"polymorphic_identity": 7}  # noqa: RUF012


class NPerson(Base):
    """Only the root is cached; a subclass says that it is not."""

    __tablename__ = "i_n_person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class NSub(NPerson):
    """Not cached."""

    __cache_config__ = None  # type: ignore[assignment]
    extra: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "sub"}  # noqa: RUF012


class ASub(SPerson):
    """A subclass with an expression and an eager relationship."""

    __mapper_args__ = {"polymorphic_identity": "eager"}  # noqa: RUF012
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("i_c_person.id"))
    owner: Mapped[CPerson | None] = relationship(lazy="joined")


ASub.loud = column_property(SPerson.name + "!")


def seed(session: Session) -> None:
    """One row of each class."""
    session.add(CPerson(id=1, name="c"))
    session.flush()
    session.add(SPerson(id=1, name="p"))
    session.flush()
    session.add_all(
        [
            SEngineer(id=2, name="e", language="py", boss_id=1),
            SManager(id=3, name="m", budget=5, secret="s"),
            SChief(id=4, name="c", budget=6, secret="t"),
            ASub(id=5, name="a", owner_id=1),
            WPerson(id=1, name="p"),
            WEngineer(id=2, name="e", language="py"),
            LPerson(id=1, name="p"),
            LInline(id=2, name="i", language="py"),
            LSelectin(id=3, name="s", budget=4),
            JPerson(id=1, name="p"),
            JEngineer(id=2, name="e", language="py"),
            JManager(person_id=3, name="m", budget=5),
            JChief(chief_id=4, name="c", budget=6, car="red"),
            JSPerson(id=1),
            JSInline(id=2, language="py"),
            JSSelectin(id=3, budget=4),
            JPlain(id=1, name="p"),
            JPlainSub(id=2, name="s", extra="x"),
            CEngineer(id=1, name="ce", language="py"),
            CEngineer(id=2, name="c2", language="py"),
            UEngineer(id=1, name="ue", language="py"),
            UManager(id=1, name="um", budget=1),
            EPerson(id=1, name="p", number=1),
            EPerson(id=2, name="s", number=7),
            NPerson(id=1, name="p"),
            NSub(id=2, name="s", extra="x"),
        ]
    )


FAMILIES: dict[str, list[Any]] = {
    "single": [SPerson, SEngineer, SManager, SChief, ASub],
    "single with_polymorphic": [WPerson, WEngineer],
    "single polymorphic_load": [LPerson, LInline, LSelectin],
    "joined": [JPerson, JEngineer, JManager, JChief],
    "joined polymorphic_load": [JSPerson, JSInline, JSSelectin],
    "joined without discriminator": [JPlain, JPlainSub],
    "concrete": [CPerson, CEngineer],
    "concrete union": [UEngineer, UManager],
    "no discriminator": [EPerson, ESub],
    "partly cached": [NPerson, NSub],
}
PKS = [1, 2, 3, 4, 5, 9]

# What the second get of (class, pk) is; None: whatever it is, it must be the same.
HIT_EXPECTED: dict[tuple[str, int], str] = {}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Copies of a database with every family."""
    folder = tmp_path_factory.mktemp("families")
    return Databases(folder, template(folder / "template.db", Base.metadata, seed))


def _looked(world: World, session: Session, model: Any, pk: int, keep: list[Any]) -> Any:
    """Get a row, whatever the get is, and note what comes; the SELECT is not compared, what comes is."""
    with world.quiet():
        try:
            found = session.get(model, pk)
        except Exception as error:
            world.see("raised", (type(error).__name__, str(error)))
            return None
    keep.append(found)
    world.look(f"{model.__name__} {pk}", found)
    return found


def _each(model: Any, pk: int, warmed_as: Any) -> Scenario:
    """Return the scenario of one get: warmed as some class of the family, then got as another."""

    def scenario(world: World) -> None:
        world.warm(warmed_as, pk)
        world.warm(warmed_as, pk)
        kind = HIT_EXPECTED.get((model.__name__, pk))
        with Session(world.engine) as session:
            keep: list[Any] = []
            if kind is not None and warmed_as is model:
                with world.quiet(), world.expecting(kind, selects=0):
                    keep.append(session.get(model, pk))
            found = _looked(world, session, model, pk, keep)
            if found is None:
                return
            for attribute in inspect(type(found)).all_orm_descriptors.keys():  # noqa: SIM118
                world.attempt(attribute, lambda name=attribute: getattr(found, name))  # what is not loaded is loaded
            world.look("touched", found)
            session.commit()
            world.attempt("name", lambda: found.id)
            world.look("refreshed", found)

    scenario.__name__ = f"{model.__name__} {pk} after {warmed_as.__name__}"
    return scenario


@pytest.mark.parametrize("family", FAMILIES)
def test_family(families: Databases, family: str) -> None:
    """Every row, asked for as every class, warmed as every class: the right class, or None for a sibling."""
    members = FAMILIES[family]
    compare(
        families,
        *(_each(model, pk, warm) for model in members for warm in dict.fromkeys([members[0], model]) for pk in PKS),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_map(families: Databases, family: str) -> None:
    """One session: each row as each class, in turn; one object for one identity."""
    members = FAMILIES[family]

    def scenario(world: World) -> None:
        for model in members:
            world.warm(model, *PKS)
        with Session(world.engine) as session:
            keep: list[Any] = []
            for model in [*members, *reversed(members)]:
                for pk in PKS:
                    found = _looked(world, session, model, pk, keep)
                    world.see("first", next(i for i, each in enumerate(keep) if each is found) if found else None)
            world.see("content", content(session))
        with world.quiet():
            for model in reversed(members):
                with Session(world.engine) as session:
                    world.see("all", [outcome(lambda o=o: portrait(o)) for o in session.scalars(select(model)).all()])

    compare(families, scenario)


@pytest.mark.parametrize("family", FAMILIES)
def test_writes(families: Databases, family: str) -> None:
    """A change of a row as one class is seen by a get of it as any other; so is its deletion."""
    members = FAMILIES[family]

    def changed(model: Any, pk: int, how: str) -> Scenario:
        def scenario(world: World) -> None:
            with world.quiet():
                for each in members:
                    world.warm(each, pk)
                with Session(world.engine) as session:
                    found = session.get(model, pk)
                    if found is None:
                        world.see("missing", None)
                        return
                    columns = [
                        c.key for c in inspect(type(found)).column_attrs if c.key in ("name", "language", "budget")
                    ]
                    if how == "delete":
                        session.delete(found)
                    elif how == "bulk":
                        table = inspect(type(found)).local_table
                        column = [c for c in table.c if not c.primary_key][-1]
                        session.execute(table.update().values({column: "5" if column.name == "budget" else column}))
                    for column in columns if how == "change" else ():
                        setattr(found, column, 9 if column == "budget" else "changed")
                    session.commit()
            for each in members:
                with Session(world.engine) as session:
                    _looked(world, session, each, pk, [])

        scenario.__name__ = f"{how} {model.__name__} {pk}"
        return scenario

    compare(
        families,
        *(
            changed(model, pk, how)
            for model in dict.fromkeys([members[0], members[-1]])
            for pk in PKS[:4]
            for how in ("change", "delete", "bulk")
        ),
    )


CASES = [
    Case(SPerson, 1, list, ("name", "q")),
    Case(SEngineer, 2, list, ("language", "q")),
    Case(SManager, 4, list, ("budget", 8), name="SManager, a chief"),
    Case(JEngineer, 2, list, ("language", "q")),
    Case(JManager, 4, list, ("budget", 8), name="JManager, a chief"),
    Case(WPerson, 2, list, ("name", "q")),
    Case(CEngineer, 1, list, ("name", "q")),
    Case(UManager, 1, list, ("name", "q")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_object(families: Databases, case: Case) -> None:
    """Whatever happens to such an object afterwards. Its own get is not compared, what follows is."""
    names = ("nothing", "read_all", "commit", "rollback", "expire", "refresh", "flush", "forget", "no_change")

    def scenario_of(name: str) -> Scenario:
        def scenario(world: World) -> None:
            world.warm(case.model, case.ident)
            with Session(world.engine) as session:
                obj = _looked(world, session, case.model, case.ident, [])
                AFTERMATHS[name](world, session, obj, case)

        scenario.__name__ = f"{case} {name}"
        return scenario

    compare(families, *map(scenario_of, names))


def test_options(families: Databases) -> None:
    """selectin_polymorphic goes to the database; the union of a concrete family has no get of its own kind."""

    def scenario(world: World) -> None:
        world.warm(JPerson, *PKS)
        with Session(world.engine) as session:
            for pk in PKS:
                found = session.get(JPerson, pk, options=[selectin_polymorphic(JPerson, [JEngineer, JManager])])
                world.look("selectin", found)
                session.expunge_all()
        world.attempt("union", lambda: polymorphic_union({"a": CPerson.__table__}, "kind") is not None)

    compare(families, scenario)


def test_classes_that_are_mapped_later(tmp_path: Path) -> None:
    """configure() and writes do not mind a class that SQLAlchemy has not mapped yet."""

    class Later(DeclarativeBase):
        pass

    class Root(AbstractConcreteBase, Later):
        id: Mapped[int] = mapped_column(primary_key=True)

    class Reflected(DeferredReflection, Later):
        __tablename__ = "i_reflected"
        __cache_config__ = CacheConfig()

    class Leaf(Root):
        __tablename__ = "i_leaf"
        __cache_config__ = CacheConfig()
        __mapper_args__ = {"polymorphic_identity": "leaf", "concrete": True}  # noqa: RUF012

    SQLModelCache.configure()
    engine = create_engine(f"sqlite:///{tmp_path}/later.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE i_reflected (id INTEGER PRIMARY KEY, name TEXT)")
        connection.exec_driver_sql("INSERT INTO i_reflected VALUES (1, 'r')")
    Later.metadata.create_all(engine)
    DeferredReflection.prepare(engine)
    with Session(engine) as session:
        session.add(Leaf(id=1))
        session.commit()
    for model in (Leaf, Reflected):
        for hits in (0, 1):
            before = SQLModelCache.stats().hits
            with Session(engine) as session:
                assert session.get(model, 1).id == 1
            assert SQLModelCache.stats().hits == before + hits
    engine.dispose()
