"""Identity to cache key, and nothing else: escaping, shards, hash slots.

    row     {prefix}:{namespace/table:shard}:{pk}       e.g.  sqlmodelcache:{3f9a1c2b7d8e4f10/hero:5}:1
    table   {prefix}:{namespace/table:shard}

The braces are literal: Redis Cluster hashes what stands between them, so a row and its table's shard share a slot and
one script reaches both. A table has `SHARDS` table keys, so that its rows spread over the slots and a table-wide
write still touches a fixed number of keys.

Where primary keys shall not be read, a hash stands in the place of each.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

from ._effects import Entry

SHARDS = 16

_UNSAFE = {ord(c): f"%{ord(c):02X}" for c in "%:{}/ \x7f" + "".join(map(chr, range(32)))}
# What a terminal takes for a command, and what turns the direction of the text around it: logs and `top` show keys.
_ORDERS = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNSAFE |= {order: f"%u{order:04X}" for order in _ORDERS}
# No client can send half of a surrogate pair, and one key that cannot be sent keeps back all others of its commit.
_UNSAFE |= {half: f"%u{half:04X}" for half in range(0xD800, 0xE000)}

# Types whose equality in Python is equality in the database and whose text is unique. No float or Decimal (1 == 1.0),
# no aware datetime (one instant, many texts), no bool (True == 1).
PK_TYPES: tuple[type, ...] = (int, str, uuid.UUID, datetime.date)


def escape(text: str) -> str:
    """Return `text` with the separators of a key percent-encoded."""
    return text.translate(_UNSAFE)


def prefix(text: str) -> str:
    """Return what every key begins with under a `key_prefix`."""
    return f"{escape(text)}:{{"


def pk_text(pk: Sequence[object]) -> str:
    """Return the readable, unique text of a primary key whose parts have types in `PK_TYPES`."""
    if len(pk) == 1:
        part = pk[0]
        return str(part) if type(part) is not str else escape(part)
    return ":".join(str(part) if type(part) is not str else escape(part) for part in pk)


def table_name(schema: str | None, table: str, translate: Mapping[Any, Any] | None = None) -> str:
    """Return a table's name in keys: escaped, with its schema if it has one, after a `schema_translate_map`."""
    if translate:
        schema = translate.get(schema, schema)
    parts = (table,) if schema is None else (schema, table)
    return ".".join(escape(part).replace(".", "%2E") for part in parts)


def hidden(text: str, secret: bytes = b"") -> str:
    """Return what stands for a text that shall not be read: 32 letters, digits, "-" and "_" for 192 bits.

    Two texts with the same would be one row to the cache; so it is too long for anybody to make such texts. Without a
    secret, whoever can guess the text can check the guess.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=secret, digest_size=24, person=_PERSON)
    return base64.urlsafe_b64encode(digest.digest()).decode()


def hash_secret(key: bytes) -> bytes:
    """Return the secret for `hidden` that belongs to an encryption key."""
    return hashlib.blake2b(b"hash_keys", key=key, digest_size=32, person=_PERSON).digest()


_PERSON = b"sqlmodelcache v1"


def shard_of(pk: str) -> int:
    """Return the shard of a primary key's text: CRC-32 modulo `SHARDS`, equal in every process."""
    return crc32(pk.encode()) % SHARDS


def entry(prefix: str, namespace: str, table: str, pk: str) -> Entry:
    """Return the two keys of a row; `prefix`, `namespace` and `table` are already escaped."""
    shard = f"{prefix}:{{{namespace}/{table}:{shard_of(pk)}}}"
    return Entry(f"{shard}:{pk}", shard)


def table_keys(prefix: str, namespace: str, table: str) -> tuple[str, ...]:
    """Return all keys of a table's shards."""
    return tuple(f"{prefix}:{{{namespace}/{table}:{shard}}}" for shard in range(SHARDS))


def table_of(row: str) -> str:
    """Return the key of the table's shard of a row's key."""
    return row[: row.index("}") + 1]


def name_of(table: str) -> str:
    """Return the table's name, as `table_name` gives it, in the key of one of its shards."""
    return slot_tag(table).partition("/")[2].rpartition(":")[0]


def slot_tag(key: str) -> str:
    """Return the part of a key that decides its slot."""
    return key[key.index("{") + 1 : key.index("}")]
