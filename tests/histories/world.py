"""What a generated history runs in: three sessions, a writer without a session, and a cache that may lose keys.

`World.step` performs one operation and returns everything of it that a program could see: values, or the name of the
error. It knows nothing of what is right; `test_histories.py` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from models import Hero, Team
from sqlalchemy import Delete, Engine, Update, delete, insert, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

Operation = tuple[Any, ...]
Row = tuple[Any, ...]

MAX_NESTING = 5
ROWS = (1, 2, 3, 4)  # primary keys; the first two exist when a history begins
MOVED = 10  # what a change of the primary key adds to it
TEAM = 1
COLUMNS = "SELECT id, name, age, team_id FROM hero"

# The ways to name rows in a bulk write. By primary key the rows are known, otherwise only the table is.
CRITERIA: dict[str, Callable[[int], Any]] = {
    "pk": lambda pk: Hero.id == pk,
    "pks": lambda pk: Hero.id.in_([pk, pk + 1]),  # type: ignore[union-attr]
    "age": lambda pk: Hero.age >= pk,  # type: ignore[operator]
    "all": lambda pk: Hero.id != None,  # noqa: E711
}


def describe(hero: Hero | None) -> Row | None:
    """Return the values of a row as a program sees them; an expired one is loaded again."""
    return None if hero is None else (hero.id, hero.name, hero.age, hero.team_id)


class Actor:
    """A session, the objects that its program holds, and its open savepoints."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.session = Session(engine)
        self.held: dict[int, Hero] = {}
        self.savepoints: list[SessionTransaction] = []

    def has(self, pk: int) -> bool:
        """Return whether the session knows an object of that key."""
        pending = any(isinstance(new, Hero) and new.id == pk for new in self.session.new)
        return pending or self.session.identity_key(Hero, pk) in self.session.identity_map

    def end(self) -> None:
        """Forget the savepoints of a transaction that has ended."""
        self.savepoints.clear()

    def abandon(self) -> None:
        """Do what a program does after an error: roll back and start again."""
        self.session.rollback()
        self.session.expunge_all()
        self.held.clear()
        self.end()


class World:
    """Performs the operations of one history. Operations that make no sense where they stand do nothing."""

    def __init__(self, engines: Sequence[Engine], outside: Engine, lose: Callable[[int | None], None]) -> None:
        self.actors = [Actor(engine) for engine in engines]
        self._outside = outside
        self._lose = lose
        self._serial = 0

    def reset(self) -> None:
        """Bring the tables to where every history begins, and warm the cache."""
        with self._outside.begin() as connection:
            if connection.dialect.name == "postgresql":  # the server's own work on the table may be under way
                connection.execute(text("SET LOCAL lock_timeout = '30s'"))
            connection.execute(text("DELETE FROM hero"))
            connection.execute(text("DELETE FROM team"))
            connection.execute(text(f"INSERT INTO team (id, name) VALUES ({TEAM}, 'A')"))
            for pk in ROWS[:2]:
                connection.execute(text(f"INSERT INTO hero (id, name, age, team_id) VALUES ({pk}, '0', {pk}, {TEAM})"))
        with Session(self._outside) as session:
            for pk in ROWS:
                session.get(Hero, pk)
                session.rollback()

    def close(self) -> None:
        """Close the sessions."""
        for actor in self.actors:
            actor.abandon()
            actor.session.close()

    def step(self, operation: Operation) -> Any:
        """Perform an operation and return what it shows; every write writes a value that was never there before."""
        self._serial += 1
        name, *arguments = operation
        if name == "lose":
            return self._lose(*arguments)
        if name == "outside":
            return self._outside_write(*arguments)
        actor = self.actors[arguments[0]]
        try:
            return getattr(self, name)(actor, *arguments[1:])
        except (SQLAlchemyError, SAWarning) as error:
            actor.abandon()
            return type(error).__name__

    def quiesce(self) -> list[Any]:
        """End all transactions, and return every row as new sessions get it, twice."""
        self.close()
        seen: list[Any] = []
        for _ in range(2):
            with Session(self._outside) as session:
                seen += [describe(session.get(Hero, pk)) for first in ROWS for pk in (first, first + MOVED)]
        return seen

    @property
    def _name(self) -> str:
        return str(self._serial)

    # reads

    def get(self, actor: Actor, pk: int) -> Row | None:
        return describe(actor.session.get(Hero, pk))

    def hold(self, actor: Actor, pk: int) -> Row | None:
        hero = actor.session.get(Hero, pk)
        if hero is not None:
            actor.held[pk] = hero
        return describe(hero)

    def get_in_another_session(self, actor: Actor, pk: int) -> Row | None:
        with Session(actor.engine) as session:
            return describe(session.get(Hero, pk))

    def get_uncached(self, actor: Actor, pk: int) -> Row | None:
        return describe(actor.session.get(Hero, pk, execution_options={"cache": False}))

    def look(self, actor: Actor, pk: int) -> Row | None:
        hero = actor.held.get(pk)
        return describe(hero) if hero is not None and hero in actor.session else None

    def select(self, actor: Actor) -> list[Row]:
        return sorted(tuple(row) for row in actor.session.execute(text(COLUMNS)))

    # the unit of work

    def change(self, actor: Actor, pk: int) -> Row | None:
        hero = actor.session.get(Hero, pk)
        if hero is not None:
            hero.name = self._name
            actor.held[pk] = hero
        return describe(hero)

    def rekey(self, actor: Actor, pk: int) -> None:
        hero = actor.session.get(Hero, pk)
        if hero is not None and not actor.has(pk + MOVED):
            hero.id = pk + MOVED

    def move(self, actor: Actor, pk: int) -> None:
        hero = actor.session.get(Hero, pk)
        if hero is not None:
            hero.team_id = None if hero.team_id else TEAM

    def add(self, actor: Actor, pk: int) -> None:
        if not actor.has(pk):
            actor.held[pk] = Hero(id=pk, name=self._name, age=pk)
            actor.session.add(actor.held[pk])

    def merge(self, actor: Actor, pk: int) -> Row | None:
        return describe(actor.session.merge(Hero(id=pk, name=self._name, age=pk)))

    def remove(self, actor: Actor, pk: int) -> None:
        hero = actor.session.get(Hero, pk)
        if hero is not None:
            actor.session.delete(hero)

    def flush(self, actor: Actor) -> None:
        actor.session.flush()

    def expire(self, actor: Actor, pk: int) -> None:
        hero = actor.held.get(pk)
        if hero is not None and hero in actor.session and hero not in actor.session.new:
            actor.session.expire(hero)

    def expire_all(self, actor: Actor) -> None:
        actor.session.expire_all()

    def expunge(self, actor: Actor, pk: int) -> None:
        hero = actor.held.pop(pk, None)
        if hero is not None and hero in actor.session:
            actor.session.expunge(hero)

    def expunge_all(self, actor: Actor) -> None:
        actor.session.expunge_all()
        actor.held.clear()

    # the transaction

    def nest(self, actor: Actor) -> None:
        if len(actor.savepoints) < MAX_NESTING:
            actor.savepoints.append(actor.session.begin_nested())

    def release(self, actor: Actor) -> None:
        if actor.savepoints:
            actor.savepoints.pop().commit()

    def back(self, actor: Actor) -> None:
        if actor.savepoints:
            actor.savepoints.pop().rollback()

    def commit(self, actor: Actor) -> None:
        actor.session.commit()
        actor.end()

    def rollback(self, actor: Actor) -> None:
        actor.session.rollback()
        actor.end()

    def close_session(self, actor: Actor) -> None:
        actor.session.close()
        actor.held.clear()
        actor.end()

    # writes around the unit of work

    def bulk(self, actor: Actor, kind: str, pk: int, synchronize: Any) -> Any:
        options = {} if kind in ("insert", "upsert", "team") else {"synchronize_session": synchronize}
        result = actor.session.execute(self._statement(kind, pk), execution_options=options)
        return sorted(tuple(row) for row in result) if kind.endswith("returning") else None

    def core(self, actor: Actor, kind: str, pk: int) -> Any:
        result = actor.session.connection().execute(self._statement(kind, pk))
        return sorted(tuple(row) for row in result) if kind.endswith("returning") else None

    def raw(self, actor: Actor, kind: str, pk: int) -> None:
        actor.session.execute(text(self._sql(kind, pk)))

    def _outside_write(self, kind: str, pk: int, form: str) -> str | None:
        """Write on a connection of its own, in a transaction of its own."""
        try:
            with self._outside.begin() as connection:
                connection.execute(self._statement(kind, pk) if form == "core" else text(self._sql(kind, pk)))
        except SQLAlchemyError as error:
            return type(error).__name__
        return None

    def _statement(self, kind: str, pk: int) -> Any:
        if kind == "insert":
            return insert(Hero).values(id=pk, name=self._name, age=pk)
        if kind == "upsert":
            dialect: Any = postgresql if self._outside.dialect.name == "postgresql" else sqlite
            statement = dialect.insert(Hero).values(id=pk, name=self._name, age=pk)
            return statement.on_conflict_do_update(index_elements=["id"], set_={"name": self._name})
        if kind == "team":
            return delete(Team).where(Team.id == TEAM)  # type: ignore[arg-type]
        verb, _, criterion = kind.partition(" ")
        criterion, _, returning = criterion.partition(" ")
        where = CRITERIA[criterion](pk)
        dml: Update | Delete
        dml = delete(Hero).where(where) if verb == "delete" else update(Hero).where(where).values(name=self._name)
        return dml.returning(Hero.id, Hero.name) if returning else dml  # type: ignore[call-overload]

    def _sql(self, kind: str, pk: int) -> str:
        if kind == "insert":
            return f"INSERT INTO hero (id, name, age) VALUES ({pk}, '{self._name}', {pk})"
        if kind == "upsert":
            return (
                f"INSERT INTO hero (id, name, age) VALUES ({pk}, '{self._name}', {pk})"
                " ON CONFLICT (id) DO UPDATE SET name = excluded.name"
            )
        if kind == "team":
            return f'/* all of it */ DELETE FROM "team" WHERE id = {TEAM}'
        if kind.startswith("delete"):
            return f"DELETE FROM hero WHERE id = {pk}"
        return f"UPDATE hero SET name = '{self._name}' WHERE id >= {pk}"


WRITES = (
    "insert",
    "upsert",
    "team",
    *(
        f"{verb} {criterion}{returning}"
        for verb in ("update", "update", "delete")
        for criterion in CRITERIA
        for returning in ("", " returning")
    ),
)
