"""`CacheConfig(exclude=...)`: never stored, and a hit is what a SELECT gives after `session.expire(obj, excluded)`."""

from __future__ import annotations

from typing import Any

import pytest
from parity import zoo_excluded as zoo
from parity.aftermath import AFTERMATHS
from parity.case import Case
from parity.runner import Databases, Scenario, World, compare, template
from security.between import Between
from sqlalchemy import ForeignKey, MetaData, inspect
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, synonym
from sqlalchemy.orm.exc import DetachedInstanceError

from sqlmodel_cache import CacheConfig, ConfigurationError, SQLModelCache
from sqlmodel_cache._entities import Entities

EXCLUDED = {
    zoo.Account: {"password_hash"},
    zoo.Vault: {"owner_id", "content", "left", "upper", "odd"},
    zoo.Person: {"secret"},
    zoo.Agent: {"secret", "code"},
    zoo.Member: {"secret"},
}


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Copies of this zoo."""
    metadata: MetaData = zoo.Base.metadata

    def seed(session: Session) -> None:
        for case in zoo.CASES:
            session.add_all(case.rows())
            session.flush()

    made = template(tmp_path_factory.mktemp("excluded") / "template.db", metadata, seed)
    return Databases(tmp_path_factory.mktemp("copies"), made)


def _scenario(case: Case, name: str, *, events: bool = False) -> Scenario:
    then = AFTERMATHS[name]

    def scenario(world: World) -> None:
        plain_get = world.get

        def get(session: Any, model: Any, ident: Any, kind: str = "hit", **options: Any) -> Any:
            obj = plain_get(session, model, ident, kind, **options)
            if not world.cached and obj is not None:
                with world.quiet():
                    session.expire(obj, EXCLUDED[type(obj)] - inspect(obj).unloaded)
            return obj

        world.get = get  # type: ignore[method-assign]
        world.warm(case.model, case.ident)
        if events:
            world.record_events(case.model)
        with Session(world.engine) as held:
            obj = world.get(held, case.model, case.ident)
            world.look("got", obj)
            then(world, held, obj, case)

    scenario.__name__ = f"{case} {name} {'events' * events}"
    return scenario


@pytest.mark.parametrize("case", zoo.CASES, ids=str)
def test_a_hit_is_a_select_whose_attributes_were_expired(case: Case, databases: Databases) -> None:
    """Whatever is done to it afterwards: read, written without reading, flushed, merged, pickled, deleted."""
    compare(
        databases,
        *(_scenario(case, name) for name in AFTERMATHS),
        *(_scenario(case, name, events=True) for name in ("nothing", "flush")),
    )


def test_never_stored_and_loaded_by_one_select(databases: Databases) -> None:
    """Nothing that is stored contains it; `unloaded` says so; the first access loads all of them at once."""
    between = Between()
    SQLModelCache.configure(between)
    engine = databases.engine("excluded")
    statements: list[str] = []
    world = World(engine, True)
    world.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    for _ in range(2):
        for case in zoo.CASES:
            with Session(engine) as session:
                session.get(case.model, case.ident)
        with Session(engine) as session:
            SQLModelCache.get_many(session, zoo.Account, [1, 2])
        with Session(engine) as session:
            assert SQLModelCache.get_by(session, zoo.Member, email="a@b.c") is not None
    assert len(between.fills) >= len(zoo.CASES)
    assert not any(b"TOP" in fill.payload for fill in between.fills)
    statements.clear()
    with Session(engine) as session:
        found = session.get_one(zoo.Agent, 3)
        assert inspect(found).unloaded == {"secret", "code"}
        assert statements == []
        assert (found.secret, found.code) == ("TOP", "TOP")
        assert len(statements) == 1
        assert inspect(found).unloaded == set()
    world.close()


def test_explain_says_what_is_left_out() -> None:
    """Beside what a SELECT leaves out, too."""
    SQLModelCache.configure()
    explained = SQLModelCache.explain(zoo.Account)
    assert explained.left_out == ("password_hash",)
    assert "password_hash" not in explained.attributes


def test_releases_with_and_without_exclude_side_by_side(databases: Databases) -> None:
    """Each hits its own payloads: what is stored differs in its fingerprint."""
    transport = Between()
    engine = databases.engine("releases")
    declared: Any = zoo.Account.__cache_config__
    try:
        for _ in range(2):
            for config in (declared, CacheConfig()):
                zoo.Account.__cache_config__ = config
                SQLModelCache.configure(transport)
                with Session(engine) as session:
                    found = session.get_one(zoo.Account, 1)
                    hits = SQLModelCache.stats().hits
                    assert ("password_hash" in inspect(found).unloaded) == (hits == 1 and config is declared)
        assert hits == 1
        assert SQLModelCache.stats().corrupt == 0
    finally:
        zoo.Account.__cache_config__ = declared


def test_what_is_not_loaded_is_not_there_for_a_detached_object(databases: Databases) -> None:
    """The one difference that `exclude` makes: what has to be loaded needs a session, and in asyncio an `await`."""
    SQLModelCache.configure()
    engine = databases.engine("detached")
    for _ in range(2):
        with Session(engine) as session:
            found = session.get_one(zoo.Account, 1)
    with pytest.raises(DetachedInstanceError):
        print(found.password_hash)


async def test_what_is_not_loaded_needs_an_await(databases: Databases) -> None:
    """As every attribute that is not loaded: `await session.refresh(obj, ["password_hash"])` loads it."""
    SQLModelCache.configure()
    engine = create_async_engine(str(databases.engine("awaited").url).replace("sqlite:", "sqlite+aiosqlite:"))
    for _ in range(2):
        async with AsyncSession(engine) as session:
            found = await session.get_one(zoo.Account, 1)
            if SQLModelCache.stats().hits:
                assert inspect(found).unloaded == {"password_hash"}
                await session.refresh(found, ["password_hash"])
            assert found.password_hash == "TOP"
    await engine.dispose()


# declarations


@pytest.mark.parametrize("wrong", ["password_hash", [""], [1], {None}], ids=repr)
def test_exclude_is_made_of_names(wrong: Any) -> None:
    """A single string is not a set of names."""
    with pytest.raises(ConfigurationError, match=r"CacheConfig\(exclude\)"):
        CacheConfig(exclude=wrong)


def _model(*excluded: str, unique: Any = ()) -> Any:
    class Local(DeclarativeBase):
        pass

    class Thing(Local):
        __tablename__ = "thing"
        __table_args__ = {"sqlite_autoincrement": False}  # noqa: RUF012
        __cache_config__ = CacheConfig(exclude=excluded, unique=unique)
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column()
        version: Mapped[int] = mapped_column()
        email: Mapped[str] = mapped_column(unique=True)
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("thing.id"))
        parent: Mapped[Any] = relationship("Thing", remote_side="Thing.id")
        other_name = synonym("email")
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "t", "version_id_col": version}  # noqa: RUF012

    return Thing


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("id", "primary key"),
        ("kind", "polymorphic_on"),
        ("version", "version_id_col"),
        ("parent", "relationship"),
        ("other_name", "no such column attribute"),
        ("pasword_hash", "no such column attribute; it has .*email"),
    ],
)
def test_what_cannot_be_excluded(name: str, why: str) -> None:
    """The error says why, where the class is first used; nothing is read."""
    model = _model(name)
    with pytest.raises(ConfigurationError, match=rf"CacheConfig\(exclude\) of .*Thing='{name}': .*{why}"):
        Entities().get(model)
    SQLModelCache.configure()
    with Session() as session, pytest.raises(ConfigurationError, match=why):
        session.get(model, 1)


def test_what_get_by_compares_cannot_be_excluded() -> None:
    """A hint leads to a row whose key is then looked at."""
    with pytest.raises(ConfigurationError, match="get_by compares it"):
        Entities().get(_model("email", unique=[("email",)]))
    assert Entities().get(_model("email")) is not None
