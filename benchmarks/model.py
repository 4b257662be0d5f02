"""The model that is measured, and the floor: what a hit costs when it is written by hand for this very model."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from dataclasses import fields
from decimal import Decimal
from itertools import cycle, islice
from typing import Any

import msgspec
from sqlalchemy import Engine
from sqlalchemy.orm import Session as PlainSession
from sqlmodel import Field, Session, SQLModel

from sqlmodel_cache import CacheConfig

ROWS = 100  # that take turns, so that no path has its one row at hand

HAS_NEAR = "near" in {field.name for field in fields(CacheConfig)}


class Columns(SQLModel):
    """Eight columns, as people have them."""

    id: int | None = Field(default=None, primary_key=True)
    name: str
    sku: str
    created: datetime.datetime
    token: uuid.UUID
    price: Decimal = Field(max_digits=10, decimal_places=2)
    active: bool
    weight: float


class Product(Columns, table=True):
    """The model that is cached."""

    __cache_config__ = CacheConfig(ttl=3600)


class Uncached(Columns, table=True):
    """The same, not cached."""


class Listed(Columns, table=True):
    """The same, cached, and looked up by its unique `sku`, too."""

    __cache_config__ = CacheConfig(ttl=3600, unique=[("sku",)])
    sku: str = Field(unique=True)


class Nearby(Columns, table=True):
    """The same, cached in this process, too."""

    __cache_config__ = CacheConfig(ttl=3600, **({"near": True} if HAS_NEAR else {}))  # type: ignore[arg-type]


MODELS: tuple[type[Columns], ...] = (Product, Uncached, Listed, Nearby)


def numbers(count: int) -> Iterator[int]:
    """Return `count` primary keys, in turns."""
    return islice(cycle(range(1, ROWS + 1)), count)


def values(number: int) -> dict[str, Any]:
    """Return the columns of a row, as a database returns them."""
    return {
        "id": number,
        "name": f"Hammer {number}",
        "sku": f"HA-{number:06}",
        "created": datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=datetime.UTC),
        "token": uuid.UUID(int=number << 64 | 0x8000_0000_0000_0000),
        "price": Decimal("12.50"),
        "active": True,
        "weight": 1.25,
    }


def fill(engine: Engine, count: int = ROWS) -> None:
    """Make the tables anew, with rows 1 to `count`."""
    tables = [model.__table__ for model in MODELS]  # type: ignore[attr-defined]
    SQLModel.metadata.drop_all(engine, tables=tables)
    SQLModel.metadata.create_all(engine, tables=tables)
    with Session(engine) as session:
        for model in MODELS:
            session.add_all([model(**values(number)) for number in range(1, count + 1)])
        session.commit()


# The floor. Whoever finds a faster way to do the same by hand should put it here.

_encode = msgspec.msgpack.Encoder(decimal_format="string", uuid_format="bytes").encode
_decode = msgspec.msgpack.Decoder(
    tuple[int, str, str, datetime.datetime, uuid.UUID, Decimal, bool, float]  # type: ignore[arg-type]
).decode
_manager = Product.__mapper__.class_manager  # type: ignore[attr-defined]
_new_state = _manager._state_constructor
_path = Product.__mapper__._path_registry  # type: ignore[attr-defined]


def payload(number: int) -> bytes:
    """Return a product as the floor stores it."""
    return _encode(tuple(values(number).values()))


def attach(session: PlainSession, number: int, raw: bytes) -> Any:
    """Return a persistent product: decoded, and put into the session as SQLAlchemy's own loading leaves it."""
    id, name, sku, created, token, price, active, weight = _decode(raw)
    product = Product.__new__(Product)
    state = _new_state(product, _manager)
    state.key = key = (Product, (number,), None)
    state.session_id = session.hash_key
    state.load_path = _path
    identities: Any = session.identity_map
    identities._dict[key] = state
    state._instance_dict = identities._wr
    loaded = product.__dict__
    loaded["_sa_instance_state"] = state
    loaded["id"] = id
    loaded["name"] = name
    loaded["sku"] = sku
    loaded["created"] = created
    loaded["token"] = token
    loaded["price"] = price
    loaded["active"] = active
    loaded["weight"] = weight
    return product


def check_floor(engine: Engine) -> None:
    """Raise AssertionError unless the floor's product is what the session's own get returns."""
    with Session(engine) as session, Session(engine) as other:
        mine, theirs = attach(session, 7, payload(7)), other.get(Product, 7)
        assert mine == theirs
        assert session.get(Product, 7) is mine
        assert mine not in session.dirty
        assert {type(value) for value in dict(mine).values()} == {type(value) for value in dict(theirs).values()}
