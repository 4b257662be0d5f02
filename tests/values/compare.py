"""What the tests call the same, written without a look at the library's own comparison."""

from __future__ import annotations

import datetime
import enum
import struct
from decimal import Decimal
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel


def facts(value: Any) -> Any:
    """Return all that can be told about a value, as nested tuples of types and plain values."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if value is None or isinstance(value, bool | str | bytes) or kind is int:
        return name, str.__str__(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return name, "nan" if value != value else struct.pack(">d", value)
    if isinstance(value, Decimal):
        return name, tuple(value.as_tuple())
    if isinstance(value, datetime.datetime | datetime.time):
        zone = value.tzinfo
        named = None if zone is None else (type(zone).__qualname__, str(zone), value.utcoffset())
        return name, value.replace(tzinfo=None).isoformat(), value.fold, named
    if isinstance(value, dict):
        return name, tuple((facts(k), facts(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return name, tuple(map(facts, value))
    if isinstance(value, set | frozenset):
        return name, tuple(sorted(map(repr, map(facts, value))))
    if isinstance(value, BaseModel):
        return name, facts(value.__dict__), facts(value.model_fields_set)
    if kind.__module__ == "values.types" and not isinstance(value, enum.Enum | PurePath):
        slots = [getattr(value, slot) for slot in getattr(kind, "__slots__", ()) if not slot.startswith("__")]
        return name, facts(vars(value)) if hasattr(value, "__dict__") else (), facts(slots)
    return name, "" if kind is object else repr(value)
