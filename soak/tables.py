"""The table that is soaked, and the journal in which PostgreSQL itself keeps what was committed."""

from __future__ import annotations

from sqlalchemy import BigInteger, Engine, text
from sqlmodel import Field, SQLModel

from soak.rows import BUCKET, ROWS
from sqlmodel_cache import CacheConfig


class Item(SQLModel, table=True):
    """A row; `note` repeats the version, so that a row made of two versions shows."""

    __tablename__ = "soak_item"
    __cache_config__ = CacheConfig(ttl=60)
    id: int = Field(primary_key=True)
    bucket: int
    version: int = Field(sa_type=BigInteger)
    note: str


# A version is in the journal exactly if its transaction, and the savepoint around it, was committed. The trigger runs
# inside COMMIT, and now and then makes it slow: on the server, where a killed client cannot stop it.
_SCHEMA = """
DROP TABLE IF EXISTS soak_item, soak_journal;
DROP SEQUENCE IF EXISTS soak_version;
CREATE SEQUENCE soak_version;
CREATE TABLE soak_journal (version bigint, item integer, deleted boolean NOT NULL, PRIMARY KEY (version, item));
CREATE OR REPLACE FUNCTION soak_slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF random() < 0.03 THEN PERFORM pg_sleep(random() * 0.06); END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER soak_slow_commit AFTER INSERT ON soak_journal
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION soak_slow_commit();
"""


def create(engine: Engine) -> None:
    """Create both tables, with every row at version 0."""
    with engine.begin() as connection:
        connection.execute(text(_SCHEMA))
        SQLModel.metadata.create_all(connection, tables=[Item.__table__])  # type: ignore[attr-defined]
        connection.execute(
            text(f"INSERT INTO soak_item SELECT n, n / {BUCKET}, 0, '0' FROM generate_series(0, {ROWS - 1}) AS n")
        )


def drop(engine: Engine) -> None:
    """Drop everything that `create` made."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE soak_item, soak_journal; DROP SEQUENCE soak_version"))
        connection.execute(text("DROP FUNCTION soak_slow_commit()"))
