"""Writes through the unit of work, and its bulk operations."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session
from writes.entry import Entry, Row, rows
from writes.tables import (
    DAYS,
    UUIDS,
    Code,
    Day,
    Far,
    Gadget,
    Hero,
    Label,
    Legacy,
    Mixed,
    Node,
    Part,
    Post,
    Robot,
    Tag,
    Team,
    Token,
)

# A row that exists, and one that does not, of each kind of primary key.
KEYS: list[tuple[Any, Any, Any]] = [
    (Hero, 1, 9),
    (Gadget, ("a", 1), ("q", 7)),
    (Code, "one", "nine"),
    (Token, UUIDS[0], uuid.UUID(int=9)),
    (Day, DAYS[0], datetime.date(2030, 1, 1)),
    (Label, 1, 9),
    (Mixed, 1, 9),
    (Far, 1, 9),
    (Legacy, 1, 9),
]


def attributes_of(model: Any, pk: Any) -> dict[str, Any]:
    """Return the primary key attributes and their values."""
    return {"owner": pk[0], "number": pk[1]} if model is Gadget else {"id": pk}


def with_pk(model: Any, pk: Any) -> Any:
    """Return the criterion for one row."""
    criteria = [getattr(model, name) == value for name, value in attributes_of(model, pk).items()]
    return criteria[0] if len(criteria) == 1 else criteria[0] & criteria[1]


TEAM_2 = [*rows(Team, 2), *rows(Hero, 3), *rows(Robot, 2), *rows(Part, 2), *rows(Post, 2)]


def _unit_of_work() -> Iterator[Entry]:
    def change(model: Any, pk: Any) -> Callable[[Session], None]:
        return lambda session: setattr(session.get(model, pk), "name", "changed")

    def add(model: Any, pk: Any) -> Callable[[Session], None]:
        return lambda session: session.add(model(**attributes_of(model, pk), name="new"))

    def remove(model: Any, pk: Any) -> Callable[[Session], None]:
        return lambda session: session.delete(session.get(model, pk))

    def rename(model: Any, pk: Any, new: Any) -> Callable[[Session], None]:
        def run(session: Session) -> None:
            instance = session.get(model, pk)
            for name, value in attributes_of(model, new).items():
                setattr(instance, name, value)

        return run

    def merge(model: Any, pk: Any) -> Callable[[Session], object]:
        return lambda session: session.merge(model(**attributes_of(model, pk), name="merged"))

    for model, pk, new in KEYS:
        name = model.__name__
        yield Entry("unit-of-work", f"update-{name}", change(model, pk), rows(model, pk))
        yield Entry("unit-of-work", f"insert-{name}", add(model, new), rows(model, new))
        if model is not Hero:  # whose tags keep it
            yield Entry("unit-of-work", f"delete-{name}", remove(model, pk), rows(model, pk))
            yield Entry("unit-of-work", f"pk-change-{name}", rename(model, pk, new), rows(model, pk, new))
        yield Entry("merge", f"existing-{name}", merge(model, pk), rows(model, pk))
        yield Entry("merge", f"new-{name}", merge(model, new), rows(model, new))


def _relationships() -> Iterator[Entry]:
    def backref(session: Session) -> None:
        team = session.get_one(Team, 1)
        team.heroes.append(session.get_one(Hero, 3))

    def orphans(session: Session) -> None:
        team = session.get_one(Team, 1)
        team.heroes.clear()

    def append_tag(session: Session) -> None:
        hero = session.get_one(Hero, 3)
        hero.tags.append(session.get_one(Tag, 2))

    def clear_tags(session: Session) -> None:
        hero = session.get_one(Hero, 1)
        hero.tags.clear()

    def new_tag(session: Session) -> None:
        hero = session.get_one(Hero, 1)
        hero.tags.append(Tag(id=9, code="c9"))

    def merge_team(session: Session) -> None:
        session.merge(Team(id=9, name="merged", heroes=[Hero(id=1, name="merged", age=1, team_id=1)]))

    family: list[tuple[str, Callable[[Session], Any], list[Row]]] = [
        ("backref", backref, rows(Hero, 3)),
        ("many-to-one", lambda s: setattr(s.get(Hero, 1), "team", s.get(Team, 2)), rows(Hero, 1)),
        ("orphans", orphans, rows(Hero, 1, 2)),
        ("delete-cascade", lambda s: s.delete(s.get(Team, 2)), TEAM_2),
        ("save-update-cascade", lambda s: s.add(Team(id=9, heroes=[Hero(id=9)])), [*rows(Team, 9), *rows(Hero, 9)]),
        ("merge-cascade", merge_team, [*rows(Team, 9), *rows(Hero, 1)]),
        ("many-to-many-append", append_tag, []),
        ("many-to-many-remove", clear_tags, []),
        ("many-to-many-delete", lambda s: s.delete(s.get(Tag, 1)), rows(Tag, 1)),
        ("many-to-many-new", new_tag, rows(Tag, 9)),
        ("self-reference", lambda s: s.delete(s.get(Node, 1)), rows(Node, 1, 2, 3)),
        ("self-reference-move", lambda s: setattr(s.get(Node, 3), "parent_id", 1), rows(Node, 3)),
    ]
    yield from (Entry("relationship", name, run, changes) for name, run, changes in family)


def _bulk() -> Iterator[Entry]:
    def entry(name: str, run: Callable[[Session], Any], *pks: Any, model: Any = Hero) -> Entry:
        return Entry("bulk", name, run, rows(model, *pks))

    def changed_heroes(session: Session) -> list[Hero]:
        heroes = [session.get_one(Hero, pk) for pk in (1, 2)]
        for hero in heroes:
            hero.name += "!"
            session.expunge(hero)
        return heroes

    yield entry("save-objects-new", lambda s: s.bulk_save_objects([Hero(id=8, name="n"), Hero(id=9, name="n")]), 8, 9)
    yield entry("save-objects-changed", lambda s: s.bulk_save_objects(changed_heroes(s)), 1, 2)
    yield entry("insert-mappings", lambda s: s.bulk_insert_mappings(Hero, [{"id": 8, "name": "n", "age": 1}]), 8)
    yield entry(
        "update-mappings", lambda s: s.bulk_update_mappings(Hero, [{"id": 1, "age": 7}, {"id": 2, "age": 8}]), 1, 2
    )
    yield entry("update-by-pk", lambda s: s.execute(update(Hero), [{"id": 1, "age": 7}, {"id": 3, "age": 8}]), 1, 3)
    yield entry("update-one-by-pk", lambda s: s.execute(update(Hero), [{"id": 1, "age": 7}]), 1)
    yield entry(
        "update-by-renamed-pk",
        lambda s: s.execute(update(Label), [{"id": 1, "name": "n"}, {"id": 2, "name": "n"}]),
        1,
        2,
        model=Label,
    )
    yield entry(
        "update-by-composite-pk",
        lambda s: s.execute(update(Gadget), [{"owner": "a", "number": 2, "name": "n"}]),
        ("a", 2),
        model=Gadget,
    )
    yield entry(
        "insert-many", lambda s: s.execute(insert(Hero), [{"id": n, "name": "n", "age": 1} for n in (8, 9)]), 8, 9
    )
    yield entry(
        "insert-returning",
        lambda s: s.scalars(insert(Hero).returning(Hero), [{"id": n, "name": "n", "age": 1} for n in (8, 9)]).all(),
        8,
        9,
    )
    yield entry("add-all", lambda s: s.add_all([Hero(id=n, name="n") for n in range(20, 60)]), *range(20, 60))
    for how in ("fetch", "evaluate", "auto", False):
        options = {"synchronize_session": how}
        yield entry(
            f"update-where-{how}",
            lambda s, o=options: s.execute(update(Hero).where(Hero.age > 35).values(age=1), execution_options=o),
            2,
            3,
        )
        yield entry(
            f"delete-where-{how}",
            lambda s, o=options: s.execute(delete(Code).where(Code.name == "x"), execution_options=o),
            "one",
            model=Code,
        )
    yield entry("query-update", lambda s: s.query(Hero).filter(Hero.id == 1).update({"age": 1}), 1)
    yield entry("query-delete", lambda s: s.query(Code).filter(Code.name == "y").delete(), "two", model=Code)
    yield entry(
        "from-statement",
        lambda s: s.scalars(
            select(Hero).from_statement(update(Hero).where(Hero.id == 1).values(age=1).returning(Hero))
        ).all(),
        1,
    )


ENTRIES = [*_unit_of_work(), *_relationships(), *_bulk()]
