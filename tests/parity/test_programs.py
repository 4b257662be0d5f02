"""Random short programs over a small model: each step gives and raises what it would without the library."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from parity.looks import content, outcome, portrait, typed
from parity.runner import Databases, Different, agree, faster, template
from sqlalchemy import Engine, ForeignKey, MetaData, create_engine, delete, inspect, make_url, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, make_transient, mapped_column, relationship

from sqlmodel_cache import CacheConfig, MemoryTransport, SQLModelCache


class Base(DeclarativeBase):
    """Keeps the tables out of the other tests'."""

    metadata = MetaData()
    __cache_config__ = CacheConfig()


class GOwner(Base):
    """A parent."""

    __tablename__ = "g_owner"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    things: Mapped[list[GThing]] = relationship(back_populates="owner", order_by="GThing.id")


class GThing(Base):
    """A child with a version."""

    __tablename__ = "g_thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    long: Mapped[str | None] = mapped_column(deferred=True)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("g_owner.id"))
    owner: Mapped[GOwner | None] = relationship(back_populates="things")
    version: Mapped[int] = mapped_column(nullable=False)
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


MODELS: list[Any] = [GOwner, GThing]
PKS = [1, 2, 3]  # the last is not there at first


def seed(session: Session) -> None:
    """Put the rows there with which every program begins."""
    session.add_all([GOwner(id=1, name="o1"), GOwner(id=2, name="o2")])
    session.flush()
    session.add_all([GThing(id=1, name="t1", long="l", owner_id=1), GThing(id=2, name="t2", owner_id=None)])


class Program:
    """Two sessions, and what their steps show."""

    def __init__(self, engine: Engine, options: dict[str, Any], cached: bool) -> None:
        self.engine = engine
        self.sessions = [Session(engine, **options), Session(engine)]
        self.savepoints: list[Any] = []
        self.cached = cached

    def step(self, name: str, at: int, model: Any, pk: int, value: int) -> Any:
        """Take a step and return what can be seen after it."""
        session = self.sessions[at]
        result = outcome(lambda: getattr(self, name)(session, model, pk, value))
        return name, result, [content(s) for s in self.sessions], [self.objects(s) for s in self.sessions]

    def objects(self, session: Session) -> Any:
        """Return the portraits of what a session holds; to look keeps nothing alive."""
        held = sorted(session.identity_map.items(), key=lambda item: repr((item[0][0].__name__, item[0][1])))
        return [portrait(instance) for _, instance in held]

    def held(self, session: Session, model: Any, pk: int) -> Any:
        """Return the object of a key that the session holds, or get it."""
        found = session.identity_map.get((model, (pk,), None))
        return found if found is not None else session.get(model, pk)

    # steps

    def get(self, session: Session, model: Any, pk: int, value: int) -> Any:
        session.info.setdefault("kept", []).append(session.get(model, pk))
        return typed(session.info["kept"][-1])

    def get_and_forget(self, session: Session, model: Any, pk: int, value: int) -> Any:
        return typed(session.get(model, pk))

    def get_one(self, session: Session, model: Any, pk: int, value: int) -> Any:
        return session.get_one(model, pk).name

    def get_anew(self, session: Session, model: Any, pk: int, value: int) -> Any:
        return session.get(model, pk, populate_existing=True)

    def change(self, session: Session, model: Any, pk: int, value: int) -> None:
        self.held(session, model, pk).name = f"v{value}"

    def change_owner(self, session: Session, model: Any, pk: int, value: int) -> None:
        self.held(session, GThing, pk).owner = self.held(session, GOwner, value % 3 + 1)

    def change_key(self, session: Session, model: Any, pk: int, value: int) -> None:
        self.held(session, model, pk).id = value % 4 + 1

    def read(self, session: Session, model: Any, pk: int, value: int) -> Any:
        found = self.held(session, model, pk)
        return [outcome(lambda key=key: getattr(found, key)) for key in inspect(model).mapper.attrs.keys()]  # noqa: SIM118

    def add(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.add(model(id=pk, name=f"a{value}"))

    def delete(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.delete(self.held(session, model, pk))

    def flush(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.flush()

    def commit(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.commit()

    def rollback(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.rollback()

    def close(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.close()

    def savepoint(self, session: Session, model: Any, pk: int, value: int) -> None:
        self.savepoints.append(session.begin_nested())

    def release(self, session: Session, model: Any, pk: int, value: int) -> None:
        self.savepoints.pop().commit()

    def roll_back_to_savepoint(self, session: Session, model: Any, pk: int, value: int) -> None:
        self.savepoints.pop().rollback()

    def expire(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.expire(self.held(session, model, pk), [None, ["name"], ["id"]][value % 3])

    def expire_all(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.expire_all()

    def refresh(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.refresh(self.held(session, model, pk))

    def expunge(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.expunge(self.held(session, model, pk))

    def merge(self, session: Session, model: Any, pk: int, value: int) -> Any:
        return session.merge(model(id=pk, name=f"m{value}"))

    def merge_from_other(self, session: Session, model: Any, pk: int, value: int) -> Any:
        other = self.sessions[0] if session is self.sessions[1] else self.sessions[1]
        return session.merge(self.held(other, model, pk), load=bool(value % 2))

    def transient(self, session: Session, model: Any, pk: int, value: int) -> None:
        make_transient(self.held(session, model, pk))

    def bulk_update(self, session: Session, model: Any, pk: int, value: int) -> Any:
        return session.execute(update(model).where(model.id >= pk).values(name=f"b{value}")).rowcount

    def bulk_delete(self, session: Session, model: Any, pk: int, value: int) -> Any:
        return session.execute(delete(model).where(model.id == pk)).rowcount

    def select(self, session: Session, model: Any, pk: int, value: int) -> Any:
        return session.scalars(select(model).order_by(model.id)).all()

    def write_elsewhere(self, session: Session, model: Any, pk: int, value: int) -> Any:
        with self.engine.begin() as connection:
            return connection.execute(update(model.__table__).where(model.id == pk).values(name=f"e{value}")).rowcount

    def toggle_autoflush(self, session: Session, model: Any, pk: int, value: int) -> None:
        session.autoflush = not session.autoflush


GETS = ["get", "get", "get", "get_and_forget", "get_one"]
STEPS = [name for name in vars(Program) if name not in ("step", "objects", "held") and not name.startswith("_")] + GETS

programs = st.tuples(
    st.sampled_from([{}, {"expire_on_commit": False}, {"autoflush": False}]),
    st.lists(
        st.tuples(
            st.sampled_from(STEPS),
            st.sampled_from([0, 0, 0, 1]),
            st.sampled_from(MODELS),
            st.sampled_from(PKS),
            st.integers(0, 9),
        ),
        min_size=4,
        max_size=14,
    ),
)


def play(engine: Engine, program: Any, cached: bool) -> list[Any]:
    """Run a program; every row is got before it, so that its gets can be hits."""
    for model in MODELS:
        for pk in PKS:
            with Session(engine) as session:
                session.get(model, pk)
    options, steps = program
    run = Program(engine, options, cached)
    journal: list[Any] = []
    with warnings.catch_warnings(action="ignore"):  # what SQLAlchemy thinks of such programs is not the matter
        for step in steps:
            journal.append((f"{len(journal)} {step}", run.step(*step)))
            # A savepoint whose session was committed cannot be released; SQLAlchemy says so in both runs.
        for session in run.sessions:
            session.close()
    with Session(engine) as session:
        journal.append(("rows", typed([[(o.id, o.name) for o in session.scalars(select(m))] for m in MODELS])))
    for model in MODELS:
        for pk in PKS:
            with Session(engine) as session:
                journal.append(("at last", portrait(session.get(model, pk))))
    return journal


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Copies of the small database."""
    folder = tmp_path_factory.mktemp("programs")
    return Databases(folder, template(folder / "template.db", Base.metadata, seed))


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


HITS = {"sqlite": 0, "postgresql": 0}


@_settings(200)
@given(programs)
def check_sqlite(small: Databases, program: Any) -> None:
    """One program on SQLite."""
    SQLModelCache.reset()
    engine = small.engine("truth")
    try:
        truth = play(engine, program, cached=False)
    finally:
        engine.dispose()
    engine = small.engine("cached")
    SQLModelCache.configure(MemoryTransport())
    try:
        cached = play(engine, program, cached=True)
        HITS["sqlite"] += SQLModelCache.stats().hits
    finally:
        SQLModelCache.reset()
        engine.dispose()
    try:
        agree(truth, cached)
    except Different as why:
        raise Different(f"{program}\n{why}") from None


def test_programs_on_sqlite(small: Databases) -> None:
    """Two hundred programs, of which enough were answered from the cache."""
    check_sqlite(small)
    assert HITS["sqlite"] > 1000


@pytest.fixture(scope="module")
def postgres(postgres_url: str) -> Iterator[Engine]:
    """The small tables on PostgreSQL."""
    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    arguments = {"options": "-c lock_timeout=100ms -c synchronous_commit=off"}
    engine = create_engine(url, connect_args=arguments)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


@_settings(40)
@given(programs)
def check_postgresql(engine: Engine, program: Any) -> None:
    """One program on PostgreSQL."""
    journals = []
    for cached in (False, True):
        SQLModelCache.reset()
        with engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE g_thing, g_owner")
        with Session(engine) as session:
            seed(session)
            session.commit()
        if cached:
            SQLModelCache.configure(MemoryTransport())
        journals.append(play(engine, program, cached))
        HITS["postgresql"] += SQLModelCache.stats().hits
    SQLModelCache.reset()
    try:
        agree(*journals)
    except Different as why:
        raise Different(f"{program}\n{why}") from None


def test_programs_on_postgresql(postgres: Engine) -> None:
    """Fewer, with locks and savepoints that are real."""
    check_postgresql(postgres)
    assert HITS["postgresql"] > 200


def test_runs_without_the_library(tmp_path: Path) -> None:
    """The rows of a program are what SQLAlchemy makes of it: the runner itself changes nothing."""
    engine = faster(create_engine(f"sqlite:///{tmp_path}/x.db"))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        seed(session)
        session.commit()
    journal = play(engine, ({}, [("change", 0, GThing, 1, 5), ("commit", 0, GThing, 1, 5)]), cached=False)
    assert "v5" in repr(journal[-2]) + repr(journal[-3])
    assert journal[-1] == ("at last", {"none": True})
    engine.dispose()
