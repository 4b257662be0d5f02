"""The model that is measured, and the floor: what a hit costs when it is written by hand for this very model."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Engine
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.orm.attributes import instance_state
from sqlmodel import Field, Session, SQLModel

from sqlmodel_cache import CacheConfig


class Product(SQLModel, table=True):
    """Eight columns, as people have them."""

    __cache_config__ = CacheConfig(ttl=3600, near=True)
    id: int | None = Field(default=None, primary_key=True)
    name: str
    sku: str
    created: datetime.datetime
    token: uuid.UUID
    price: Decimal = Field(max_digits=10, decimal_places=2)
    active: bool
    weight: float


class Untouched(SQLModel, table=True):
    """The same, not cached."""

    id: int | None = Field(default=None, primary_key=True)
    name: str
    price: Decimal = Field(max_digits=10, decimal_places=2)


def values(number: int) -> dict[str, Any]:
    """Return the columns of a product."""
    return {
        "id": number,
        "name": f"Hammer {number}",
        "sku": f"HA-{number:06}",
        "created": datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC),
        "token": uuid.UUID(int=number),
        "price": Decimal("12.50"),
        "active": True,
        "weight": 1.25,
    }


def fill(engine: Engine, count: int = 100) -> None:
    """Make the tables anew, with rows 1 to `count`."""
    SQLModel.metadata.drop_all(engine, tables=[Product.__table__, Untouched.__table__])  # type: ignore[attr-defined]
    SQLModel.metadata.create_all(engine, tables=[Product.__table__, Untouched.__table__])  # type: ignore[attr-defined]
    with Session(engine) as session:
        session.add_all([Product(**values(number)) for number in range(1, count + 1)])
        session.add_all([Untouched(id=number, name="u", price=Decimal("1.00")) for number in range(1, count + 1)])
        session.commit()


_COLUMNS = tuple(Product.model_fields)
_encode = msgspec.msgpack.Encoder(decimal_format="string", uuid_format="bytes").encode
_decode = msgspec.msgpack.Decoder(
    tuple[int, str, str, datetime.datetime, uuid.UUID, Decimal, bool, float]  # type: ignore[arg-type]
).decode


def payload(number: int) -> bytes:
    """Return a product as the floor stores it."""
    return _encode(tuple(values(number).values()))


def attach(session: PlainSession, number: int, raw: bytes) -> Any:
    """Return a persistent product: decoded, and put into the session as SQLAlchemy's own loading does it."""
    manager = Product.__mapper__.class_manager  # type: ignore[attr-defined]
    instance = manager.new_instance()
    state = instance_state(instance)
    state.key = (Product, (number,), None)
    state.session_id = session.hash_key
    session.identity_map._add_unpresent(state, state.key)
    state.load_path = Product.__mapper__._path_registry  # type: ignore[attr-defined]
    state.dict.update(zip(_COLUMNS, _decode(raw), strict=True))
    return instance


def same(found: Any, number: int) -> bool:
    """Return whether an object is the product with that number."""
    expected: Mapping[str, Any] = values(number)
    return {key: getattr(found, key) for key in expected} == expected
