"""Writes in text: every spelling of a verb and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import DDL, text
from sqlalchemy.schema import CreateTable, DropTable
from writes.entry import ALL, POSTGRES, PSYCOPG, SQLITE, Entry, Row, rows
from writes.tables import (
    DAYS,
    OTHER_SCHEMA,
    UUIDS,
    Code,
    Day,
    Far,
    Gadget,
    Hero,
    Legacy,
    Mixed,
    Tag,
    Team,
    Token,
    table_of,
)

HERO_1 = rows(Hero, 1)
HEROES = rows(Hero, 1, 2, 3)

SPELLINGS: list[tuple[str, str, list[Row], tuple[str, ...]]] = [
    ("update", "UPDATE w_hero SET age = 1 WHERE id = 1", HERO_1, ALL),
    ("lower", "update w_hero set age = 1 where id = 1", HERO_1, ALL),
    ("mixed", "Update W_Hero sEt age = 1 where id = 1", HERO_1, ALL),
    ("quoted", 'UPDATE "w_hero" SET age = 1 WHERE id = 1', HERO_1, ALL),
    ("backticks", "UPDATE `w_hero` SET age = 1 WHERE id = 1", HERO_1, SQLITE),
    ("brackets", "UPDATE [w_hero] SET age = 1 WHERE id = 1", HERO_1, SQLITE),
    ("main-schema", "UPDATE main.w_hero SET age = 1 WHERE id = 1", HERO_1, SQLITE),
    ("public-schema", "UPDATE public.w_hero SET age = 1 WHERE id = 1", HERO_1, POSTGRES),
    ("quoted-schema", 'UPDATE "public" . "w_hero" SET age = 1 WHERE id = 1', HERO_1, POSTGRES),
    ("upper-schema", "UPDATE PUBLIC.W_HERO SET age = 1 WHERE id = 1", HERO_1, POSTGRES),
    ("database", "UPDATE postgres.public.w_hero SET age = 1 WHERE id = 1", HERO_1, POSTGRES),
    ("line-comment", "-- a note\nUPDATE -- another\n w_hero SET age = 1 WHERE id = 1", HERO_1, ALL),
    ("comment", "/* a note */ UPDATE/**/w_hero/**/SET age = 1 WHERE id = 1", HERO_1, ALL),
    ("comment-in-name", "UPDATE public./* a note */w_hero SET age = 1 WHERE id = 1", HERO_1, POSTGRES),
    ("spaces", "\n\t UPDATE\n\tw_hero\n\tSET age = 1 WHERE id = 1\n;", HERO_1, ALL),
    ("aliased", "UPDATE w_hero AS h SET age = 1 WHERE h.id = 1", HERO_1, ALL),
    ("only", "UPDATE ONLY w_hero SET age = 1 WHERE id = 1", HERO_1, POSTGRES),
    ("from", "UPDATE w_hero SET age = 1 FROM w_team t WHERE t.id = team_id AND t.name = 'red'", rows(Hero, 1, 2), ALL),
    ("returning", "UPDATE w_hero SET age = 1 WHERE id = 1 RETURNING id", HERO_1, ALL),
    ("delete", "DELETE FROM w_hero WHERE id = 1", HERO_1, ALL),
    ("delete-only", "DELETE FROM ONLY w_hero WHERE id = 1", HERO_1, POSTGRES),
    ("delete-using", "DELETE FROM w_hero USING w_team t WHERE t.id = team_id AND t.id = 1", rows(Hero, 1, 2), POSTGRES),
    ("delete-all", "DELETE FROM w_hero", HEROES, ALL),
    ("insert", "INSERT INTO w_hero (id, name, age) VALUES (9, 'n', 1)", rows(Hero, 9), ALL),
    (
        "insert-select",
        "INSERT INTO w_hero (id, name, age) SELECT id + 50, name, age FROM w_hero WHERE id = 1",
        rows(Hero, 51),
        ALL,
    ),
    ("replace", "REPLACE INTO w_tag (id, code, label) VALUES (9, 'c1', 'n')", rows(Tag, 1, 9), SQLITE),
    (
        "insert-or-replace",
        "INSERT OR REPLACE INTO w_tag (id, code, label) VALUES (9, 'c1', 'n')",
        rows(Tag, 1, 9),
        SQLITE,
    ),
    ("update-or-replace", "UPDATE OR REPLACE w_tag SET code = 'c1' WHERE id = 2", rows(Tag, 1, 2), SQLITE),
    (
        "upsert",
        "INSERT INTO w_tag (id, code, label) VALUES (9, 'c1', 'n') ON CONFLICT (code) DO UPDATE SET label = 'n'",
        rows(Tag, 1),
        ALL,
    ),
    ("upsert-nothing", "INSERT INTO w_tag (id, code, label) VALUES (1, 'c1', 'n') ON CONFLICT DO NOTHING", [], ALL),
    ("other-schema", f"UPDATE {OTHER_SCHEMA}.w_far SET name = 'n' WHERE id = 1", rows(Far, 1), ALL),
    ("other-schema-upper", "UPDATE W_OTHER.W_FAR SET name = 'n' WHERE id = 1", rows(Far, 1), ALL),
    ("other-schema-quoted", 'UPDATE "w_other"."w_far" SET name = \'n\' WHERE id = 1', rows(Far, 1), ALL),
    ("quoted-name", 'UPDATE "wMixed Case" SET "The Name" = \'n\' WHERE "The Id" = 1', rows(Mixed, 1), ALL),
    ("text-key", "UPDATE w_code SET name = 'n' WHERE id = 'one'", rows(Code, "one"), ALL),
    ("composite-key", "DELETE FROM w_gadget WHERE owner = 'a' AND number = 2", rows(Gadget, ("a", 2)), ALL),
    ("date-key", "UPDATE w_day SET name = 'n'", rows(Day, *DAYS), ALL),
    ("uuid-key", "DELETE FROM w_token", rows(Token, *UUIDS), ALL),
    ("legacy", "DELETE FROM w_legacy WHERE id = 1", rows(Legacy, 1), ALL),
    (
        "cte",
        "WITH e AS (SELECT id FROM w_hero WHERE age > 35) UPDATE w_hero SET age = 1 WHERE id IN (SELECT id FROM e)",
        rows(Hero, 2, 3),
        POSTGRES,
    ),
    (
        "cte-dml",
        "WITH d AS (DELETE FROM w_hero WHERE id = 1 RETURNING name) INSERT INTO w_code SELECT name, name FROM d",
        [*HERO_1, *rows(Code, "Ann")],
        POSTGRES,
    ),
    ("cte-select", "WITH d AS (UPDATE w_hero SET age = 1 WHERE id = 1 RETURNING id) SELECT * FROM d", HERO_1, POSTGRES),
    ("explain-analyze", "EXPLAIN ANALYZE UPDATE w_hero SET age = 1 WHERE id = 1", HERO_1, POSTGRES),
    (
        "merge",
        "MERGE INTO w_hero h USING (VALUES (1, 5), (9, 6)) v(id, age) ON h.id = v.id"
        " WHEN MATCHED THEN UPDATE SET age = v.age"
        " WHEN NOT MATCHED THEN INSERT (id, name, age) VALUES (v.id, 'n', v.age)",
        rows(Hero, 1, 9),
        POSTGRES,
    ),
    ("copy-program", "COPY w_code FROM PROGRAM 'echo three,n' WITH (FORMAT csv)", rows(Code, "three"), POSTGRES),
    ("do", "DO $$ BEGIN UPDATE w_hero SET age = 1 WHERE id = 1; END $$", HERO_1, POSTGRES),
    ("do-execute", "DO $body$ BEGIN EXECUTE 'UPDATE w_hero SET age = 1 WHERE id = 1'; END; $body$", HERO_1, POSTGRES),
    (
        "two",
        "UPDATE w_hero SET age = 1 WHERE id = 1; UPDATE w_team SET name = 'n' WHERE id = 1",
        [*HERO_1, *rows(Team, 1)],
        PSYCOPG,
    ),
    ("select-first", "SELECT 1; DELETE FROM w_hero WHERE id = 1", HERO_1, PSYCOPG),
]

DDL_TEXT: list[tuple[str, str, list[Row], tuple[str, ...]]] = [
    ("truncate", "TRUNCATE w_code", rows(Code, "one", "two"), POSTGRES),
    ("truncate-table", "truncate table only w_code restart identity", rows(Code, "one", "two"), POSTGRES),
    (
        "truncate-several",
        "TRUNCATE w_code, w_gadget",
        [*rows(Code, "one", "two"), *rows(Gadget, ("a", 1), ("a", 2), ("b", 1))],
        POSTGRES,
    ),
    ("alter-type", "ALTER TABLE w_hero ALTER COLUMN name TYPE varchar USING upper(name)", HEROES, POSTGRES),
    (
        "drop-column",
        "ALTER TABLE w_code DROP COLUMN name, ADD COLUMN name varchar DEFAULT 'n'",
        rows(Code, "one", "two"),
        POSTGRES,
    ),
    (
        "rename",
        "ALTER TABLE w_code RENAME TO w_code_old;CREATE TABLE w_code (id varchar, name varchar); DROP TABLE w_code_old",
        rows(Code, "one", "two"),
        PSYCOPG,
    ),
    (
        "drop-and-create-as",
        "DROP TABLE w_code; CREATE TABLE w_code AS SELECT 'one' AS id, 'n' AS name",
        rows(Code, "one", "two"),
        PSYCOPG,
    ),
    (
        "rename-schema",
        "ALTER SCHEMA w_other RENAME TO w_old; CREATE SCHEMA w_other;"
        "CREATE TABLE w_other.w_far (id int, name text); DROP SCHEMA w_old CASCADE",
        rows(Far, 1, 2),
        PSYCOPG,
    ),
    (
        "drop-schema",
        "DROP SCHEMA w_other CASCADE; CREATE SCHEMA w_other; CREATE TABLE w_other.w_far (id int, name text)",
        rows(Far, 1, 2),
        PSYCOPG,
    ),
]


def _spelled() -> Iterator[Entry]:
    for name, sql, changes, on in SPELLINGS:
        driver_sql = lambda c, s=sql: c.exec_driver_sql(s)  # noqa: E731
        yield Entry("text", name, lambda c, s=sql: c.execute(text(s)), changes, "session", on)
        yield Entry("driver-sql", name, driver_sql, changes, "connection", on)
        yield Entry("driver-sql", name, driver_sql, changes, "autocommit", on)
    for name, sql, changes, on in DDL_TEXT:
        yield Entry("ddl-text", name, lambda c, s=sql: c.execute(text(s)), changes, "session", on, ddl=True)
        yield Entry("ddl-text", name, lambda c, s=sql: c.exec_driver_sql(s), changes, "connection", on, ddl=True)
        yield Entry("ddl-text", name, lambda c, s=sql: c.exec_driver_sql(s), changes, "autocommit", on, ddl=True)


def _with_parameters() -> Iterator[Entry]:
    def many(sql: str, *parameters: tuple[Any, ...]) -> Callable[[Any], Any]:
        def run(connection: Any) -> Any:
            style = connection.dialect.paramstyle
            marks = ["$1", "$2", "$3"] if style == "numeric_dollar" else ["?" if style == "qmark" else "%s"] * 3
            return connection.exec_driver_sql(sql.format(*marks), list(parameters))

        return run

    for via in ("connection", "autocommit"):
        yield Entry(
            "driver-executemany",
            "update",
            many("UPDATE w_hero SET age = {} WHERE id = {}", (1, 1), (2, 2)),
            rows(Hero, 1, 2),
            via,
        )
        yield Entry(
            "driver-executemany",
            "delete",
            many("DELETE FROM w_code WHERE id = {}", ("one",), ("two",)),
            rows(Code, "one", "two"),
            via,
        )
        yield Entry(
            "driver-executemany",
            "insert",
            many("INSERT INTO w_code VALUES ({}, {})", ("six", "n"), ("ten", "n")),
            rows(Code, "six", "ten"),
            via,
        )
    bound = text("UPDATE w_hero SET age = :age WHERE id = :id")
    for via in ("session", "connection", "autocommit"):
        yield Entry("text-bound", "one", lambda c: c.execute(bound, {"age": 1, "id": 1}), HERO_1, via)
        yield Entry(
            "text-bound",
            "many",
            lambda c: c.execute(bound, [{"age": 1, "id": 1}, {"age": 1, "id": 3}]),
            rows(Hero, 1, 3),
            via,
        )
        yield Entry(
            "text-bound",
            "columns",
            lambda c: c.execute(
                text("DELETE FROM w_hero WHERE id = 1 RETURNING id").columns(table_of(Hero).c.id)
            ).all(),
            HERO_1,
            via,
        )


def _schema_items() -> Iterator[Entry]:
    both = rows(Code, "one", "two")

    def drop_and_create(connection: Any) -> None:
        connection.execute(DropTable(table_of(Code)))
        connection.execute(CreateTable(table_of(Code)))

    def drop_and_create_far(connection: Any) -> None:
        connection.execute(DropTable(table_of(Far)))
        connection.execute(CreateTable(table_of(Far)))

    def drop_translated(connection: Any) -> None:
        options = {"schema_translate_map": {None: "public"}}
        connection.execute(DropTable(table_of(Code)), execution_options=options)
        connection.execute(CreateTable(table_of(Code)), execution_options=options)

    for via in ("connection", "autocommit"):
        yield Entry("ddl", "drop-create", drop_and_create, both, via, POSTGRES, ddl=True)
        yield Entry("ddl", "drop-create-far", drop_and_create_far, rows(Far, 1, 2), via, POSTGRES, ddl=True)
        yield Entry("ddl", "drop-create-translated", drop_translated, both, via, POSTGRES, ddl=True)
        yield Entry("ddl", "truncate", lambda c: c.execute(DDL("TRUNCATE w_code")), both, via, POSTGRES, ddl=True)
    yield Entry("ddl", "drop-create", drop_and_create, both, "immediate", SQLITE, ddl=True)
    yield Entry(
        "ddl",
        "add-column",
        lambda c: c.exec_driver_sql("ALTER TABLE w_code ADD COLUMN more int"),
        [],
        "immediate",
        SQLITE,
        ddl=True,
    )
    cte = "WITH e AS (SELECT 1 AS id) UPDATE w_hero SET age = 1 WHERE id IN (SELECT id FROM e)"
    yield Entry("driver-sql", "cte", lambda c: c.exec_driver_sql(cte), HERO_1, "immediate", SQLITE)


ENTRIES = [*_spelled(), *_with_parameters(), *_schema_items()]
