"""An object from a lazy load that was a hit cannot be told from one that a lazy load's SELECT has loaded."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from parity import zoo_lazy
from parity.aftermath import AFTERMATHS, touch
from parity.looks import content, history
from parity.runner import Databases, Scenario, World, compare, template
from parity.test_async import both, tried, warm
from parity.zoo_lazy import (
    CALLS,
    LINKS,
    LAnimal,
    LBadge,
    LCity,
    LDog,
    LEager,
    LEarly,
    LHero,
    LListened,
    LMissed,
    LNode,
    LOwner,
    LPair,
    LPlain,
    LRenewed,
    LTeam,
)
from sqlalchemy import event, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    Session,
    defaultload,
    joinedload,
    lazyload,
    load_only,
    raiseload,
    selectinload,
    with_loader_criteria,
)

# What SQLAlchemy leaves behind when it raises MissingGreenlet.
pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

TARGETS: list[tuple[Any, Any]] = [
    (LTeam, 1), (LTeam, 2), (LBadge, 1), (LListened, 1), (LPair, (1, "x")), (LAnimal, 1), (LAnimal, 2), (LAnimal, 3),
    (LDog, 1), (LPlain, 1), (LRenewed, 1), (LCity, 1), (LNode, 1), (LNode, 2), (LMissed, 9),
]  # fmt: skip

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register a scenario."""
    SCENARIOS[function.__name__] = function  # type: ignore[attr-defined]
    return function


@pytest.fixture(scope="module")
def lazy_databases(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Copies of a SQLite file with the heroes and what they refer to."""
    folder = tmp_path_factory.mktemp("lazy")

    def seed(session: Session) -> None:
        for row in zoo_lazy.rows():
            session.add(row)
            session.flush()
        session.execute(text("INSERT INTO l_member VALUES (1, 2)"))

    return Databases(folder, template(folder / "template.db", zoo_lazy.Base.metadata, seed))


def opened(world: World, **options: Any) -> Session:
    """Return a session for which a hit of every target is ready."""
    for model, ident in TARGETS:
        world.warm(model, ident)
    CALLS.clear()
    return Session(world.engine, **options)


def load(session: Session, model: Any, pk: int = 1, *options: Any) -> Any:
    """Return an object by a SELECT."""
    return session.scalars(select(model).where(model.id == pk).options(*options)).one()


def follow(world: World, parent: Any, name: str, kind: str = "hit") -> Any:
    """Return what an attribute refers to, and look at it or at the error. Its lazy load must be of this kind.

    It is a "refused" one where nothing is counted: the lazy load is none of the library's business, or sends no SELECT.
    """
    held = [None]

    def read() -> None:
        with world.expecting(kind):
            held[0] = getattr(parent, name)
        world.look(f"{name} of {type(parent).__name__}", held[0])

    world.attempt(name, read)
    return held[0]


@pytest.mark.parametrize("link", LINKS)
def test_object(link: str, lazy_databases: Databases) -> None:
    """Whatever is done to it, and in what order events are fired."""
    case = LINKS[link]

    def run_of(name: str, events: bool) -> Scenario:
        def run(world: World) -> None:
            world.warm(case.model, case.ident)
            CALLS.clear()
            if events:
                world.record_events(case.model)
            with Session(world.engine) as session:
                hero = load(session, LHero)
                obj = follow(world, hero, link)
                world.see("called", CALLS)
                AFTERMATHS[name](world, session, obj, case)
                world.look("the hero", hero)
            world.see("called", CALLS)

        run.__name__ = f"{link} {name} {'events' * events}"
        return run

    observed = ("nothing", "flush", "delete_and_commit", "expunge")
    compare(
        lazy_databases,
        *(run_of(name, events=False) for name in AFTERMATHS),
        *(run_of(name, events=True) for name in observed),
    )


@scenario
def every_target(world: World) -> None:
    """Of each kind: what it refers to, from a class and from a subclass."""
    with opened(world) as session:
        hero, sidekick, other = load(session, LHero), load(session, LHero, 2), load(session, LHero, 3)
        for name, case in LINKS.items():
            follow(world, hero, name)
            for each in session.identity_map.values():
                if isinstance(each, case.model):
                    session.expunge(each)
        for name in ("team", "animal"):
            session.expire(sidekick, [name])
            follow(world, sidekick, name)
        follow(world, other, "animal")
        world.see("content", content(session))


@scenario
def found_in_the_session(world: World) -> None:
    """What the session holds, or refers to nothing, is no lazy load."""
    with opened(world) as session:
        team, hero, other = load(session, LTeam), load(session, LHero), load(session, LHero, 3)
        world.see("same", follow(world, hero, "team", "refused") is team)
        follow(world, other, "listened", "refused")
        follow(world, other, "missed", "refused")


@scenario
def not_by_primary_key(world: World) -> None:
    """Another key, further criteria and a secondary table are joins, not look-ups."""
    with opened(world) as session:
        hero = load(session, LHero)
        for name in ("coded", "narrowed", "through"):
            follow(world, hero, name, "refused")
            session.expunge_all()
            hero = load(session, LHero)


@scenario
def opted_out(world: World) -> None:
    """A relationship's own word counts more than its target's; what raises does so."""
    with opened(world) as session:
        hero = load(session, LHero)
        for name in ("raising", "raising_on_sql", "refused", "raising_on_sql"):
            follow(world, hero, name, "refused")
        follow(world, hero, "asked")
        session.expunge(hero.asked)
        follow(world, hero, "plain", "refused")


@scenario
def both_sides_by_primary_key(world: World) -> None:
    """A one-to-one through a shared primary key is a look-up from either side."""
    with opened(world) as session:
        badge = follow(world, load(session, LCity), "badge")
        follow(world, badge, "city", "hit")
    with opened(world) as session:
        city = follow(world, load(session, LBadge), "city")
        follow(world, city, "badge", "hit")


@scenario
def chain(world: World) -> None:
    """From hit to hit, and on to a lazy load by SELECT: each remembers where it began."""
    with opened(world) as session:
        node = load(session, LNode, 3)
        follow(world, follow(world, node, "parent"), "parent")
        follow(world, node.parent.parent, "parent", "refused")
        team = follow(world, load(session, LHero), "team")
        follow(world, team, "city", "refused")
        touch(world, team)


@scenario
def missing(world: World) -> None:
    """What is not there is None: by a SELECT, or from the cache where absence is cached."""
    with opened(world) as session:
        other = load(session, LHero, 3)
        follow(world, other, "team", "miss")
        world.look("other", other)
        follow(world, load(session, LHero), "missed")
        world.see("content", content(session))


@scenario
def missing_from_a_family(world: World) -> None:
    """A row of another class is None."""
    with opened(world) as session:
        hero = load(session, LHero, 2)
        follow(world, hero, "dog", "miss")
        follow(world, hero, "animal")
        session.expire(hero, ["dog"])
        follow(world, hero, "dog", "refused")


@scenario
def half_a_key(world: World) -> None:
    """A key with a part that is NULL is not one of the cache's."""
    with opened(world) as session:
        follow(world, load(session, LHero, 2), "pair", "bypass")


@scenario
def key_of_another_type(world: World) -> None:
    """A key that the program has set to another type than its column's goes to the database."""
    with opened(world, autoflush=False) as session:
        for value in ("1", True, 1.0):
            hero = load(session, LHero)
            hero.team_id = value
            follow(world, hero, "team", "bypass")
            session.rollback()
            session.expunge_all()


@scenario
def pending_key(world: World) -> None:
    """A changed key is flushed before the load, or is not, without autoflush."""
    for autoflush in (True, False):
        with opened(world, autoflush=autoflush) as session:
            hero = load(session, LHero)
            hero.team_id = 2
            follow(world, hero, "team")
            world.see("dirty", len(session.dirty))
            world.see("history", history(hero))
            session.rollback()
            world.look("rolled back", hero)
            follow(world, hero, "team")


@scenario
def flush_makes_the_target(world: World) -> None:
    """The flush before a load may bring what it looks for into the session."""
    with opened(world) as session:
        hero = load(session, LHero, 3)
        session.add(LTeam(id=7, code="N", name="new"))
        follow(world, hero, "team", "bypass")
        session.rollback()
        session.expunge_all()
        follow(world, load(session, LHero, 3), "team", "miss")


@scenario
def own_writes(world: World) -> None:
    """What the transaction has written is read from the database until it ends."""
    with opened(world) as session:
        hero = load(session, LHero)
        follow(world, hero, "team").name = "draft"
        session.flush()
        session.expunge(hero.team)
        session.expire(hero, ["team"])
        follow(world, hero, "team", "bypass")
        session.rollback()
        session.expunge_all()
        follow(world, load(session, LHero), "team")


@scenario
def deleted_target(world: World) -> None:
    """A target that was deleted is None, in this session and in the next."""
    with opened(world) as session:
        hero = load(session, LHero)
        session.delete(follow(world, hero, "team"))
        session.flush()
        world.look("hero", hero)
        session.expunge_all()
        follow(world, load(session, LHero), "team", "refused")
        session.commit()
    with Session(world.engine) as session:
        session.execute(text("UPDATE l_hero SET team_id = 1 WHERE id = 1"))
        session.commit()
        follow(world, load(session, LHero), "team", "miss")


@scenario
def deleted_elsewhere(world: World) -> None:
    """A target that the session holds, expired, and that another has deleted."""
    with opened(world) as session:
        hero = load(session, LHero)
        follow(world, hero, "team")
        session.commit()
        with world.quiet(), Session(world.engine) as other:
            other.execute(text("DELETE FROM l_team WHERE id = 1"))
            other.commit()
        world.attempt("name", lambda: hero.team.name)
        world.attempt("again", lambda: hero.team)


@scenario
def expired(world: World) -> None:
    """The relationship, the object or the target is expired, or refreshed."""
    with opened(world) as session:
        hero = load(session, LHero)
        team = follow(world, hero, "team")
        session.expire(hero, ["team"])
        world.see("same", follow(world, hero, "team", "refused") is team)
        session.expunge(team)
        session.expire(hero, ["team"])
        world.look("hero", hero)
        follow(world, hero, "team")
        session.expunge(hero.team)
        session.expire(hero)
        team = follow(world, hero, "team")
        session.refresh(hero)
        world.look("refreshed", hero)
        session.expunge(team)
        with world.expecting("refused"):
            session.refresh(hero, ["team"])
        world.look("with its team", hero)
        session.expire(hero.team)
        follow(world, hero, "team", "refused")
        world.see("name", hero.team.name)


@scenario
def populate_existing(world: World) -> None:
    """A SELECT over what the session holds resets its relationships."""
    with opened(world) as session:
        hero = load(session, LHero)
        team = follow(world, hero, "team")
        session.scalars(select(LHero), execution_options={"populate_existing": True}).all()
        world.look("hero", hero)
        follow(world, hero, "team", "refused")
        session.expunge(team)
        session.scalars(select(LHero), execution_options={"populate_existing": True}).all()
        follow(world, hero, "team")


@scenario
def options_of_the_statement(world: World) -> None:
    """Options go on to lazy loads, so these go to the database."""
    for option, kind in (
        (selectinload(LHero.animal), "bypass"),
        (lazyload(LHero.team).load_only(LTeam.name), "bypass"),
        (lazyload(LHero.team).joinedload(LTeam.city), "bypass"),
        (defaultload(LHero.team).undefer(LTeam.motto), "bypass"),
        (load_only(LHero.name), "bypass"),
        (with_loader_criteria(LTeam, LTeam.name == "z"), "bypass"),
        (lazyload(LHero.team.and_(LTeam.name == "z")), "refused"),
    ):
        with opened(world) as session:
            hero = load(session, LHero, 1, option)
            follow(world, hero, "team", kind)
            world.see("name", hero.name)


@scenario
def options_that_load_or_raise(world: World) -> None:
    """What an option has loaded is no lazy load, and what it forbids raises."""
    for option in (joinedload(LHero.team), selectinload(LHero.team)):
        with opened(world) as session:
            follow(world, load(session, LHero, 1, option), "team", "refused")
    for option in (raiseload(LHero.team), raiseload(LHero.team, sql_only=True), raiseload("*")):
        with opened(world) as session:
            follow(world, load(session, LHero, 1, option), "team", "refused")


@scenario
def eager(world: World) -> None:
    """What is loaded with the object is none of the library's business; later lazy loads are."""
    with opened(world) as session:
        found = load(session, LEager)
        for name in ("joined", "selectin", "immediate"):
            follow(world, found, name, "refused")
        team = found.joined
        for name in ("joined", "selectin", "immediate"):
            session.expire(found, [name])
        session.expunge(team)
        world.look("expired", found)
        follow(world, found, "joined")
        world.look("found", found)


@scenario
def history_of_the_old(world: World) -> None:
    """A new value is set over one that was never loaded; with active_history the old one is loaded for that."""
    with opened(world) as session:
        hero = load(session, LHero)
        new = LTeam(id=8, code="N", name="n")
        with world.expecting("refused"):
            hero.team = new
            hero.watched = new
        world.see("history", history(hero))
        world.look("hero", hero)
        world.see("heroes", [each.id for each in new.heroes])
        session.commit()
        world.look("committed", hero)
        follow(world, hero, "team", "refused")
    with opened(world) as session:
        hero = load(session, LHero)
        with world.expecting("refused"):
            world.see("history", inspect(hero).attrs.watched.load_history())


@scenario
def collection_of_the_other_side(world: World) -> None:
    """A target that was a hit takes part in backrefs."""
    with opened(world) as session:
        team = follow(world, load(session, LHero), "team")
        other = load(session, LHero, 3)
        other.team = team
        world.see("heroes", [each.id for each in team.heroes])
        team.heroes.remove(other)
        world.see("team", other.team)
        session.flush()
        world.see("heroes", [each.id for each in team.heroes])


@scenario
def objects_that_are_not_persistent(world: World) -> None:
    """Pending and detached objects load, or raise, as ever."""
    with opened(world) as session, session.no_autoflush:
        early = LEarly(id=5, team_id=1)
        session.add(early)
        follow(world, early, "team", "refused")
    with opened(world) as session:
        session.add(pending := LOwner(id=5, team_id=1))
        with session.no_autoflush:
            follow(world, pending, "team", "refused")
        session.expunge(pending)
        session.enable_relationship_loading(pending)
        follow(world, pending, "team", "refused")
    with opened(world) as session:
        hero = load(session, LHero)
        session.expunge(hero)
        follow(world, hero, "team", "refused")
        session.add(hero)
        follow(world, hero, "team")


@scenario
def unpickled(world: World) -> None:
    """An object that comes back into a session loads again."""
    with opened(world) as session:
        hero = load(session, LHero)
        data = pickle.dumps(hero)
        follow(world, hero, "team")
        whole = pickle.dumps(hero)
    for each in data, whole:
        with Session(world.engine) as session:
            back = pickle.loads(each)
            session.add(back)
            follow(world, back, "team", "hit" if each is data else "refused")
            world.see("content", content(session))


@scenario
def cascades(world: World) -> None:
    """What a deletion goes on to, a merge, and a listener within a flush, are read from the database."""
    with opened(world) as session:
        owner = load(session, LOwner)
        with world.expecting("refused"):
            session.delete(owner)
        world.look("team", owner.team)
        session.flush()
        session.rollback()
    with opened(world) as session:
        hero = load(session, LHero)
        session.expunge(hero)
        hero.name = "m"
        with world.expecting("refused"):
            merged = session.merge(hero)
        world.look("merged", merged)
    with opened(world) as session:
        hero = load(session, LHero)
        seen = []

        @event.listens_for(session, "before_flush")
        def _before(*_: Any) -> None:
            seen.append(hero.team.name)

        hero.name = "f"
        with world.expecting("bypass"):
            session.flush()
        world.see("seen", seen)
        session.rollback()


@scenario
def merged_relationship(world: World) -> None:
    """A merge of an object with its target looks for both in the database."""
    with opened(world) as session:
        hero = load(session, LHero)
        follow(world, hero, "team")
        session.expunge_all()
        session.rollback()
        merged = session.merge(hero)
        world.look("merged", merged)
        world.look("its team", merged.team)


@scenario
def listener_of_statements(world: World) -> None:
    """A listener may narrow what a lazy load finds."""
    with opened(world) as session:
        seen = []

        @event.listens_for(session, "do_orm_execute")
        def _execute(state: Any) -> None:
            seen.append(state.is_relationship_load)
            if state.is_relationship_load:
                state.statement = state.statement.options(with_loader_criteria(LTeam, LTeam.name == "z"))

        follow(world, load(session, LHero), "team", "bypass")
        world.see("seen", seen)


@scenario
def association(world: World) -> None:
    """A proxy reads through a hit."""
    with opened(world) as session:
        with world.expecting("hit"):
            hero = load(session, LHero)
            seen = hero.team_name
        world.see("name", seen)


@scenario
def savepoint(world: World) -> None:
    """A hit in a savepoint that is rolled back is expired with it."""
    with opened(world) as session:
        hero = load(session, LHero)
        with session.begin_nested() as nested:
            team = follow(world, hero, "team")
            team.name = "x"
            nested.rollback()
        world.look("team", team)
        world.see("name", team.name)


@pytest.mark.parametrize("name", SCENARIOS)
def test_lazy_load(name: str, lazy_databases: Databases) -> None:
    """In every state of the object, the session and the target: the same object, the same SQL, the same error."""
    compare(lazy_databases, SCENARIOS[name])


async def test_async(lazy_databases: Databases) -> None:
    """Outside of a greenlet a lazy load raises MissingGreenlet, though it could be a hit; within one, it is one."""

    async def play(world: World, engine: AsyncEngine) -> None:
        await warm(world, engine, (LTeam, 1), (LTeam, 2))
        async with AsyncSession(engine) as session:
            hero = await session.get_one(LHero, 1)
            await tried(world, "outside", lambda: hero.team)
        async with AsyncSession(engine) as session:
            hero = await session.get_one(LHero, 1)
            with world.expecting("hit"):
                team = await hero.awaitable_attrs.team
            world.look("team", team)
            with world.expecting("hit"):
                watched = await session.run_sync(lambda _: hero.watched)
            world.look("watched", watched)
            session.expunge(team)
            await session.refresh(hero, ["team"])
            world.look("refreshed", hero.team)
            hero.team.name = "changed"
            await session.commit()
            await tried(world, "expired", lambda: hero.team)

    await both(lazy_databases, play)
