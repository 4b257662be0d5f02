"""What is logged, and said in errors, shows no column value but a primary key."""

from __future__ import annotations

import enum
import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, Session, SQLModel, create_engine

from sqlmodel_cache import CacheConfig, SQLModelCache
from sqlmodel_cache._codec import Codec, Column
from sqlmodel_cache.errors import CodecError

SECRET = "sesame"


class Talking(TypeDecorator[Any]):
    """Says what it was given when it fails, and does not come back as it was."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value is not None and value.startswith("refuse"):
            raise ValueError(f"cannot bind {value}")
        return value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        if value == f"decode {SECRET}":
            raise LookupError(value)
        return value


class Odd(enum.Enum):
    """Not the enum of the column."""

    SESAME = SECRET


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Talking(), f"refuse {SECRET}"),
        (Talking(), f"decode {SECRET}"),
        (sa.Integer(), SECRET),
        (sa.Enum("a", "b"), Odd.SESAME),
        (sa.Enum(enum.Enum("E", ["A"])), SECRET),
        (sa.JSON(), {SECRET: {Odd.SESAME}}),
        (sa.String(), f"{SECRET}\ud800"),
        (sa.DateTime(), SECRET),
        (sa.Numeric(), SECRET),
        (sa.Uuid(), SECRET),
    ],
)
def test_a_refusal_shows_no_value(type_: Any, value: Any) -> None:
    """Whatever an error of somebody else's says of it: the attribute and the kind of error are named."""
    codec = Codec([Column("value", "value", type_)], pysqlite.dialect(), ["value"])
    with pytest.raises(CodecError, match="attribute 'value'") as refused:
        codec.encode({"value": value})
    assert SECRET not in str(refused.value).lower()


class Diary(SQLModel, table=True):
    """Has a column whose type talks."""

    __cache_config__ = CacheConfig()
    id: int = Field(primary_key=True)
    text: str = Field(sa_type=Talking)  # type: ignore[call-overload]


def test_a_row_that_is_not_cached_is_logged_without_its_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and `explain()` name the model, the primary key, the attribute and why."""
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO diary VALUES (77, 'refuse sesame')")
    caplog.set_level(logging.DEBUG, logger="sqlmodel_cache")
    SQLModelCache.configure()
    with Session(engine) as session:
        assert session.get_one(Diary, 77).text == f"refuse {SECRET}"
    assert "Diary 77 is not cached: attribute 'text': ValueError" in caplog.text
    assert SECRET not in caplog.text + str(SQLModelCache.explain(Diary))
