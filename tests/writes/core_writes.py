"""INSERT, UPDATE and DELETE as SQLAlchemy constructs: ORM-enabled and Core, on sessions and on connections."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import (
    MetaData,
    Table,
    and_,
    bindparam,
    column,
    delete,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased
from writes.entry import ALL, POSTGRES, SQLITE, Entry, Row, Via, rows
from writes.orm_writes import KEYS, attributes_of, with_pk
from writes.tables import OTHER_SCHEMA, Code, Far, Gadget, Hero, Label, Tag, Team, table_of

VIAS: tuple[Via, ...] = ("session", "connection", "autocommit")

# Ways to say which rows; of a class, or of a table's columns.
CRITERIA: dict[str, tuple[Callable[[Any], Any], list[Row]]] = {
    "pk": (lambda t: t.id == 1, rows(Hero, 1)),
    "pk-in": (lambda t: t.id.in_([1, 3, 77]), rows(Hero, 1, 3)),
    "pk-in-nothing": (lambda t: t.id.in_([]), []),
    "pk-and": (lambda t: and_(t.id == 1, t.age > 5, t.name == "Ann"), rows(Hero, 1)),
    "pk-or": (lambda t: or_(t.id == 1, t.id == 2), rows(Hero, 1, 2)),
    "pk-not": (lambda t: not_(t.id == 1), rows(Hero, 2, 3)),
    "pk-between": (lambda t: t.id.between(1, 2), rows(Hero, 1, 2)),
    "pk-expression": (lambda t: t.id == literal(1) + 1, rows(Hero, 2)),
    "pk-reversed": (lambda t: literal(2) == t.id, rows(Hero, 2)),
    "pk-subquery": (lambda t: t.id.in_(select(func.max(Hero.id).label("last"))), rows(Hero, 3)),
    "other-column": (lambda t: t.name == "Bob", rows(Hero, 2)),
    "text": (lambda t: text("name = 'Bob'"), rows(Hero, 2)),
    "everything": (lambda t: literal(1) == 1, rows(Hero, 1, 2, 3)),
}


def _of_target(target: Any) -> Any:
    return target.c if isinstance(target, Table) else target


def _dml() -> Iterator[Entry]:
    targets = {"orm": Hero, "core": table_of(Hero)}
    for (how, target), (name, (where, changes)), via in itertools.product(targets.items(), CRITERIA.items(), VIAS):
        if how == "orm" and via != "session":
            continue  # on a connection it is Core
        criterion = where(_of_target(target))
        change = update(target).where(criterion).values(age=99)
        remove = delete(target).where(criterion)
        yield Entry(f"{how}-update", name, lambda c, s=change: c.execute(s), changes, via)
        yield Entry(f"{how}-delete", name, lambda c, s=remove: c.execute(s), changes, via)


def _returning() -> Iterator[Entry]:
    for (how, target), name in itertools.product({"orm": Hero, "core": table_of(Hero)}.items(), ("pk", "other-column")):
        where, changes = CRITERIA[name]
        of = _of_target(target)
        returned = {"pk": (of.id,), "columns": (of.id, of.name), "entity": (target,)}
        for what, columns in returned.items():
            change = update(target).where(where(of)).values(age=99).returning(*columns)
            remove = delete(target).where(where(of)).returning(*columns)
            yield Entry(f"{how}-returning", f"update-{name}-{what}", lambda c, s=change: c.execute(s).all(), changes)
            yield Entry(f"{how}-returning", f"delete-{name}-{what}", lambda c, s=remove: c.execute(s).all(), changes)
    change = update(table_of(Hero)).where(table_of(Hero).c.id == 1).values(age=99).returning(table_of(Hero).c.id)
    yield Entry("core-returning", "not-fetched", lambda c: c.execute(change), rows(Hero, 1), "connection")
    yield Entry("core-returning", "fetched", lambda c: c.execute(change).all(), rows(Hero, 1), "autocommit")


def _by_key() -> Iterator[Entry]:
    for model, pk, new in KEYS:
        table_ = table_of(model)
        named = {model.__mapper__.attrs[key].columns[0].key: value for key, value in attributes_of(model, new).items()}
        text_column = model.__mapper__.attrs["name"].columns[0].key
        filled = {text_column: "new"} | ({"age": 1} if model is Hero else {})
        change = update(model).where(with_pk(model, pk)).values(name="changed")
        move = update(table_).where(with_pk(model, pk)).values(named)
        add = insert(table_).values(named | filled)
        name = model.__name__
        yield Entry("by-key", f"update-{name}", lambda c, s=change: c.execute(s), rows(model, pk), "connection")
        yield Entry("by-key", f"insert-{name}", lambda c, s=add: c.execute(s), rows(model, new), "connection")
        if model is not Hero:
            yield Entry("by-key", f"move-{name}", lambda c, s=move: c.execute(s), rows(model, pk, new), "connection")


def _values() -> Iterator[Entry]:
    heroes, labels = table_of(Hero), table_of(Label)

    def core(name: str, run: Callable[[Any], Any], changes: list[Row], on: tuple[str, ...] = ALL) -> Iterator[Entry]:
        for via in VIAS:
            yield Entry("core-values", name, run, changes, via, on)

    by_name = update(heroes).where(heroes.c.id == bindparam("pk")).values(age=bindparam("years"))
    renamed = update(labels).where(labels.c.label_id == 1)
    ordered = update(heroes).where(heroes.c.id == 1).ordered_values((heroes.c.age, 5), (heroes.c.name, "n"))
    query = select(heroes.c.id + 50, heroes.c.name, heroes.c.age).where(heroes.c.id < 3)
    cte = select(heroes.c.id).where(heroes.c.age > 35).cte("elders")
    yield from core(
        "executemany", lambda c: c.execute(by_name, [{"pk": 1, "years": 5}, {"pk": 2, "years": 6}]), rows(Hero, 1, 2)
    )
    yield from core("pk-in-parameters", lambda c: c.execute(renamed, {"label_id": 9}), rows(Label, 1, 9))
    yield from core(
        "pk-bound", lambda c: c.execute(renamed.values(label_id=bindparam("n")), {"n": 9}), rows(Label, 1, 9)
    )
    yield from core(
        "pk-computed", lambda c: c.execute(renamed.values(label_id=labels.c.label_id + 8)), rows(Label, 1, 9)
    )
    yield from core("pk-literal", lambda c: c.execute(renamed.values(label_id=literal(9))), rows(Label, 1, 9))
    yield from core("ordered", lambda c: c.execute(ordered), rows(Hero, 1))
    yield from core(
        "insert-select",
        lambda c: c.execute(insert(heroes).from_select(["id", "name", "age"], query)),
        rows(Hero, 51, 52),
    )
    yield from core(
        "insert-rows",
        lambda c: c.execute(insert(heroes).values([{"id": n, "name": "n", "age": n} for n in (8, 9)])),
        rows(Hero, 8, 9),
    )
    yield from core(
        "in-cte",
        lambda c: c.execute(update(heroes).where(heroes.c.id.in_(select(cte.c.id))).values(age=1)),
        rows(Hero, 2, 3),
        POSTGRES,
    )
    yield Entry(
        "core-values",
        "in-cte",
        lambda c: c.execute(update(heroes).where(heroes.c.id.in_(select(cte.c.id))).values(age=1)),
        rows(Hero, 2, 3),
        "immediate",
        SQLITE,
    )
    yield Entry(
        "orm-values",
        "pk-by-attribute",
        lambda s: s.execute(update(Label).where(Label.id == 1).values(id=9)),
        rows(Label, 1, 9),
    )
    yield Entry(
        "orm-values",
        "pk-computed",
        lambda s: s.execute(update(Label).where(Label.id == 1).values(id=Label.id + 8)),
        rows(Label, 1, 9),
    )
    yield Entry(
        "orm-values",
        "pk-bound",
        lambda s: s.execute(update(Label).where(Label.id == 1).values(id=bindparam("n")), {"n": 9}),
        rows(Label, 1, 9),
    )
    yield Entry(
        "orm-values",
        "by-column",
        lambda s: s.execute(update(Label).where(Label.id == 1).values({Label.name: "n"})),
        rows(Label, 1),
    )


def _several_tables() -> Iterator[Entry]:
    heroes, teams = table_of(Hero), table_of(Team)
    other = aliased(Hero)
    alias = heroes.alias("h")
    doomed = delete(heroes).where(heroes.c.id == 1).returning(heroes.c.id, heroes.c.name).cte("doomed")
    born = insert(table_of(Code)).from_select(["id", "name"], select(doomed.c.name, doomed.c.name))
    raw = text("UPDATE w_hero SET age = 1 WHERE id = 2 RETURNING id").columns(column("id")).cte("changed")

    def entry(name: str, statement: Any, changes: list[Row], on: tuple[str, ...] = ALL) -> Iterator[Entry]:
        for via in VIAS[:2]:
            yield Entry("several-tables", name, lambda c: c.execute(statement), changes, via, on)

    in_team = and_(heroes.c.team_id == teams.c.id, teams.c.name == "red")
    yield from entry("update-from", update(heroes).where(in_team).values(age=1), rows(Hero, 1, 2))
    yield from entry(
        "update-from-pk-of-other",
        update(heroes).where(heroes.c.team_id == teams.c.id, teams.c.id == 1).values(age=1),
        rows(Hero, 1, 2),
    )
    yield from entry(
        "update-from-alias", update(Hero).where(Hero.age < other.age, other.id == 2).values(age=1), rows(Hero, 1)
    )
    yield from entry("delete-using", delete(heroes).where(in_team), rows(Hero, 1, 2), POSTGRES)
    yield from entry("update-alias", update(alias).where(alias.c.id == 1).values(age=1), rows(Hero, 1))
    yield from entry("delete-alias", delete(alias).where(alias.c.id == 1), rows(Hero, 1), POSTGRES)
    yield from entry("cte-delete", select(doomed.c.id), rows(Hero, 1), POSTGRES)
    yield from entry("cte-delete-insert", born, [*rows(Hero, 1), *rows(Code, "Ann")], POSTGRES)
    yield from entry("cte-added", select(literal(1)).add_cte(doomed), rows(Hero, 1), POSTGRES)
    yield from entry("cte-text", select(raw.c.id), rows(Hero, 2), POSTGRES)


def _other_tables() -> Iterator[Entry]:
    def reflected(connection: Any) -> Any:
        bind = (
            connection.connection()
            if hasattr(connection, "connection") and callable(connection.connection)
            else connection
        )
        return connection.execute(update(Table("w_hero", MetaData(), autoload_with=bind)).values(age=1))

    light = table("w_hero", column("id"), column("age"))
    named = table("w_far", column("id"), column("name"), schema=OTHER_SCHEMA)
    second = Table("w_far", MetaData(), *(c._copy() for c in table_of(Far).columns), schema=OTHER_SCHEMA)
    translated = Table("w_far", MetaData(), *(c._copy() for c in table_of(Far).columns), schema="elsewhere")
    bare = Table("w_far", MetaData(), *(c._copy() for c in table_of(Far).columns))
    text_key = table("w_code", column("id"), column("name"))

    for via in VIAS[:2]:
        yield Entry("other-metadata", "reflected", reflected, rows(Hero, 1, 2, 3), via)
        yield Entry(
            "other-metadata",
            "lightweight",
            lambda c: c.execute(update(light).where(light.c.id == 1).values(age=1)),
            rows(Hero, 1),
            via,
        )
        yield Entry(
            "other-metadata", "lightweight-delete", lambda c: c.execute(delete(light)), rows(Hero, 1, 2, 3), via
        )
        yield Entry(
            "other-metadata",
            "bare-column",
            lambda c: c.execute(update(light).where(column("id") == 1).values(age=1)),
            rows(Hero, 1),
            via,
        )
        yield Entry(
            "other-metadata",
            "text-key",
            lambda c: c.execute(update(text_key).where(text_key.c.id == "one").values(name="n")),
            rows(Code, "one"),
            via,
        )
        yield Entry(
            "schema",
            "lightweight",
            lambda c: c.execute(update(named).where(named.c.id == 1).values(name="n")),
            rows(Far, 1),
            via,
        )
        yield Entry(
            "schema", "second-table", lambda c: c.execute(update(second).values(name="n")), rows(Far, 1, 2), via
        )
        for name, table_, mapping in (
            ("renamed", translated, {"elsewhere": OTHER_SCHEMA}),
            ("none", bare, {None: OTHER_SCHEMA}),
        ):
            yield Entry(
                "schema",
                f"translated-{name}",
                lambda c, t=table_, m=mapping: c.execute(
                    update(t).where(t.c.id == 1).values(name="n"), execution_options={"schema_translate_map": m}
                ),
                rows(Far, 1),
                via,
            )


def _upserts() -> Iterator[Entry]:
    for on, dialect in ((SQLITE, sqlite), (POSTGRES, postgresql)):

        def entry(
            name: str, statement: Any, changes: list[Row], parameters: Any = None, on: Any = on
        ) -> Iterator[Entry]:
            for via in VIAS:
                yield Entry("upsert", name, lambda c: c.execute(statement, parameters), changes, via, on)

        tags = dialect.insert(Tag).values(id=1, code="c1", label="n")
        excluded = {"label": tags.excluded.label}
        gadgets = dialect.insert(Gadget).values(owner="a", number=1, name="n")
        labels = dialect.insert(table_of(Label)).values(label_id=1, label_text="n")
        moved = tags.values(id=9, code="c3").on_conflict_do_update(index_elements=["code"], set_={"id": 9})
        many = [{"id": 1, "code": "c1", "label": "n"}, {"id": 9, "code": "c9", "label": "n"}]
        yield from entry("by-pk", tags.on_conflict_do_update(index_elements=["id"], set_=excluded), rows(Tag, 1))
        yield from entry(
            "by-unique", tags.values(id=9).on_conflict_do_update(index_elements=["code"], set_=excluded), rows(Tag, 1)
        )
        yield from entry("moves-the-pk", moved, rows(Tag, 3, 9))
        yield from entry(
            "where",
            tags.on_conflict_do_update(index_elements=[Tag.id], set_=excluded, where=Tag.label == "first"),
            rows(Tag, 1),
        )
        yield from entry("do-nothing", tags.on_conflict_do_nothing(), [])
        yield from entry(
            "new",
            tags.values(id=9, code="c9").on_conflict_do_update(index_elements=["id"], set_=excluded),
            rows(Tag, 9),
        )
        yield from entry(
            "composite",
            gadgets.on_conflict_do_update(index_elements=["owner", "number"], set_={"name": "n"}),
            rows(Gadget, ("a", 1)),
        )
        yield from entry(
            "renamed",
            labels.on_conflict_do_update(index_elements=["label_id"], set_={"label_text": "n"}),
            rows(Label, 1),
        )
        yield from entry(
            "executemany",
            dialect.insert(table_of(Tag)).on_conflict_do_update(index_elements=["id"], set_=excluded),
            rows(Tag, 1, 9),
            many,
        )
        yield from entry(
            "rows",
            dialect.insert(Tag).values(many).on_conflict_do_update(index_elements=["id"], set_=excluded),
            rows(Tag, 1, 9),
        )
        yield from entry(
            "returning",
            tags.on_conflict_do_update(index_elements=["id"], set_=excluded).returning(Tag.id),
            rows(Tag, 1),
        )
    constraint = (
        postgresql.insert(Tag)
        .values(id=1, code="c1", label="n")
        .on_conflict_do_update(constraint="w_tag_pkey", set_={"label": "n"})
    )
    yield Entry("upsert", "by-constraint", lambda c: c.execute(constraint), rows(Tag, 1), on=POSTGRES)
    replaced = insert(Tag).prefix_with("OR REPLACE").values(id=9, code="c1", label="n")
    moving = update(table_of(Tag)).prefix_with("OR REPLACE").where(table_of(Tag).c.id == 2).values(code="c1")
    for via in VIAS:
        yield Entry("upsert", "insert-or-replace", lambda c: c.execute(replaced), rows(Tag, 1, 9), via, SQLITE)
        yield Entry("upsert", "update-or-replace", lambda c: c.execute(moving), rows(Tag, 1, 2), via, SQLITE)


ENTRIES = [*_dml(), *_returning(), *_by_key(), *_values(), *_several_tables(), *_other_tables(), *_upserts()]
