"""Row to bytes and back: msgspec's msgpack, typed by the model's columns, checked at every fill.

A codec is made once for each mapped class and driver. Each column has a carrier, and msgspec decodes to exactly the
carrier's type. What does not come back as the same type and an equal value is refused by `encode`, so an unknown type
costs a miss and never a wrong value. Nothing here pickles or evaluates what it reads, nor imports what that names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Dialect
from sqlalchemy.types import TypeEngine

from ._carriers import Carrier, carrier_of, plain_type
from ._described import described
from ._values import UNSEEN, Unfit, encode, same, see, unpack
from .errors import CodecError

__all__ = ["Codec", "Column", "plain_type"]

LAYOUT = 2  # part of every fingerprint: change it when the payload of an unchanged model changes


@dataclass(frozen=True, slots=True)
class Column:
    """What the codec must know of a loaded attribute."""

    key: str
    name: str
    type: TypeEngine[Any]


class Codec:
    """Encodes the rows of one mapped class, as one driver loads them.

    Args:
        columns: the loaded attributes, in the order of the payload.
        dialect: chooses among the variants of types; a few drivers load types of their own.
        order: the attributes in the order in which SQLAlchemy sets them in this process.

    Attributes:
        fingerprint: 8 bytes that differ when the columns, their names, their order, their types or their ways do.
        load: what `decode` does, for callers who catch every error themselves.
    """

    def __init__(self, columns: Sequence[Column], dialect: Dialect, order: Sequence[str]) -> None:
        self._carriers = {column.key: carrier_of(column.type, dialect) for column in columns}
        self.load = _loader(self._carriers, order)
        parts = [f"{c.key}\0{c.name}\0{self._carriers[c.key].way}\0{described(c.type, dialect)}" for c in columns]
        self.fingerprint = hashlib.blake2b("\1".join([str(LAYOUT), *parts]).encode(), digest_size=8).digest()

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the row as attribute names and values.

        Raises:
            CodecError: the bytes are not a row of this class.
        """
        try:
            return self.load(payload)
        except Exception as error:  # hostile bytes may raise anything; none of it is the reader's trouble
            raise not_a_row(error) from error

    def encode(self, row: Mapping[str, Any]) -> bytes:
        """Return the payload of a row.

        Raises:
            CodecError: a value would not come back as it is; the message and `attribute` name the attribute.
        """
        wire = []
        for key, carrier in self._carriers.items():
            try:
                value = row[key]
                wire.append(value if _skips(carrier.dump, value, carrier) else carrier.dump(value))  # type: ignore[misc]
            except Exception as error:  # whatever a value's own methods raise, the row is merely not cached
                raise _refusal(key, _said(error)) from error
        try:
            payload = encode(wire)
            back = self.decode(payload)
        except Exception as error:
            raise self._blame(wire, error) from error
        for key, found in back.items():
            try:
                survives = same(row[key], found)
            except Exception as error:
                raise _refusal(key, _said(error)) from error
            if not survives:
                raise _refusal(key, f"a {type(row[key]).__name__} does not survive the round trip")
        return payload

    def _blame(self, wire: list[Any], error: Exception) -> CodecError:
        """Return an error that names the attribute that cannot travel."""
        for (key, carrier), value in zip(self._carriers.items(), wire, strict=True):
            try:
                _loader({key: carrier}, [key])(encode([value]))
            except Exception as its_own:
                return _refusal(key, _said(its_own))
        return CodecError(_said(error))


def not_a_row(error: Exception) -> CodecError:
    """Return the error to raise for bytes that `load` has failed on."""
    return CodecError(_said(error))


def _skips(convert: Callable[[Any], Any] | None, value: object, carrier: Carrier) -> bool:
    return convert is None or (value is None and not carrier.nulls)


def _decoder(wires: Sequence[Any]) -> Callable[[bytes], tuple[Any, ...]]:
    types = tuple(wire if wire is Any else wire | None for wire in wires)
    decode: Callable[[bytes], tuple[Any, ...]]
    decode = msgspec.msgpack.Decoder(tuple[types], ext_hook=unpack).decode  # type: ignore[valid-type]
    if Any not in wires:
        return decode

    def decode_seen(payload: bytes) -> tuple[Any, ...]:
        if len(payload) > UNSEEN:
            see(payload)
        return decode(payload)

    return decode_seen


def _loader(carriers: Mapping[str, Carrier], order: Sequence[str]) -> Callable[[bytes], dict[str, Any]]:
    """Return a function that makes a row of a payload, and raises whatever its decoders raise.

    It is compiled from a dict display, which takes half the time of a loop. Nothing but numbers and the names of
    attributes, as literals, gets into its source.
    """
    places = {key: at for at, key in enumerate(carriers)}
    names: dict[str, Any] = {f"load{places[key]}": carrier.load for key, carrier in carriers.items() if carrier.load}
    names["decode"] = _decoder([carrier.wire for carrier in carriers.values()])
    items = []
    for key in order:
        at, carrier = places[key], carriers[key]
        if carrier.load is None:
            item = f"v{at}"
        elif carrier.nulls:
            item = f"load{at}(v{at})"
        else:
            item = f"None if v{at} is None else load{at}(v{at})"
        items.append(f"{key!r}: {item}")
    values = "".join(f"v{at}, " for at in places.values())
    source = f"def load(payload):\n    ({values}) = decode(payload)\n    return {{{', '.join(items)}}}"
    exec(source, names)  # noqa: S102
    made: Callable[[bytes], dict[str, Any]] = names["load"]
    return made


def _refusal(key: str, why: str) -> CodecError:
    return CodecError(f"attribute {key!r}: {why}", attribute=key)


def _said(error: Exception) -> str:
    """Return what an error says, if it says nothing of the value: it may be logged."""
    return str(error) if type(error) in (Unfit, msgspec.ValidationError, CodecError) else type(error).__name__
