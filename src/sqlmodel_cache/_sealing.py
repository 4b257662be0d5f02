"""What leaves the process and comes back: payloads of a bounded size, encrypted and authenticated if there is a key.

It stands between the plans and the transports: plans see what they stored, transports what they may see. A payload that
is too large, or does not open, becomes one that decodes to nothing: the plans count it and have it replaced. What
is sealed has a fingerprint of its own, so that processes with and without a key do not take it for broken.

    sealed payload    version 1 | key id 4 | salt 8 | nonce 12 | until 8 | AES-GCM(payload) and its tag 16

Associated with it, and so authentic too: all that stands in front, the fingerprint, and the row's key. So it cannot
be moved to another row, tenant, model or release, and an old one cannot be played back when its time is over. The
cipher's key is derived from the configured one by the salt, which no two processes share: AES-GCM must not see more
than 2**32 random nonces under one key.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ._effects import Entry, Fill, Hit, Lease, Lookup, Together
from ._plan import Effect
from .errors import ConfigurationError

UNREADABLE = b""
"""What becomes of a payload that cannot be read: no row, no hint and no absence."""

OVERHEAD = 49  # bytes that sealing adds
LEEWAY = 60  # seconds by which hosts' clocks may differ before they miss on each other's payloads
PER_SALT = 2**31  # payloads under one key
MAX_CIPHERS = 1_000  # that are kept: one for each process that has filled lately

_HEAD = struct.Struct(">B4s8s12sQ")
_VERSION = 1
_PERSON = b"sqlmodelcache v1"  # what derives keys here derives others elsewhere


class Gate:
    """Passes effects on to a transport, and its replies back.

    Args:
        max_bytes: of a payload; a larger one is not decoded.
        keys: the first encrypts, all decrypt; without any, payloads pass as they are.

    Raises:
        ConfigurationError: there are keys, but no `cryptography`; or a key is given twice.
    """

    def __init__(self, max_bytes: int, keys: Sequence[bytes] = ()) -> None:
        self._seal = _Seal(keys) if keys else None
        self._max_bytes = max_bytes + (OVERHEAD if keys else 0)

    @property
    def seals(self) -> bool:
        """Whether effects are not what the transport gets."""
        return self._seal is not None

    def put(self, effect: Effect[Any]) -> Effect[Any]:
        """Return an effect as the transport shall perform it."""
        return effect if self._seal is None else self._seal.put(effect)

    def take(self, effect: Effect[Any], reply: Any) -> Any:
        """Return the reply to an effect that was put as `effect` here."""
        kind = type(reply)
        if kind is bytes:
            return self._payload(effect, reply)
        if kind is Hit:
            return Hit(self._payload(effect, reply.payload))
        if type(effect) is Together:
            return tuple(map(self.take, effect.effects, reply))
        return reply

    def _payload(self, effect: Any, payload: bytes) -> bytes:
        if len(payload) > self._max_bytes:
            return UNREADABLE
        return payload if self._seal is None else self._seal.opened(effect, payload)


class _Seal:
    def __init__(self, keys: Sequence[bytes]) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise ConfigurationError(
                "encryption_key", "...", "it needs a package: pip install 'sqlmodel-cache[encryption]'"
            ) from None
        self._make: Callable[[bytes], Any] = AESGCM
        self._keys = {_id_of(key): key for key in keys}
        if len(self._keys) != len(keys):
            raise ConfigurationError("encryption_key", "...", "give each key once")
        self._first = _id_of(keys[0])
        self._ciphers: dict[tuple[bytes, bytes], Any] = {}  # by key id and salt
        self._marks: dict[bytes, bytes] = {}  # fingerprint of the plans -> of what is stored
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()  # a child has its parent's salt
        self._left = PER_SALT
        self._salt = os.urandom(8)

    def put(self, effect: Any) -> Effect[Any]:
        kind = type(effect)
        if kind is Lookup:
            return Lookup(effect.entry, self._mark(effect.fingerprint))
        if kind is Lease:
            put: Effect[Any] = replace(effect, fingerprint=self._mark(effect.fingerprint))
        elif kind is Fill:
            mark = self._mark(effect.fingerprint)
            sealed = self._sealed(effect.entry, mark, effect.payload, effect.ttl_ms)
            put = replace(effect, fingerprint=mark, payload=sealed)
        elif kind is Together:
            put = Together(tuple(map(self.put, effect.effects)))
        else:
            put = effect
        return put

    def opened(self, effect: Any, payload: bytes) -> bytes:
        try:
            version, id, salt, nonce, until = _HEAD.unpack_from(payload)
            if version != _VERSION or until + LEEWAY < time.time():
                return UNREADABLE
            head = payload[: _HEAD.size]
            associated = _associated(head, effect.entry, self._mark(effect.fingerprint))
            opened: bytes = self._cipher(id, salt).decrypt(nonce, payload[_HEAD.size :], associated)
        except Exception:  # of bytes that anybody may have written
            return UNREADABLE
        return opened

    def _sealed(self, entry: Entry, mark: bytes, payload: bytes, ttl_ms: int) -> bytes:
        if self._left <= 0 or self._pid != os.getpid():
            self._renew()
        self._left -= 1
        salt, nonce = self._salt, os.urandom(12)
        head = _HEAD.pack(_VERSION, self._first, salt, nonce, int(time.time() + ttl_ms / 1000) + 1)
        sealed: bytes = self._cipher(self._first, salt).encrypt(nonce, payload, _associated(head, entry, mark))
        return head + sealed

    def _cipher(self, id: bytes, salt: bytes) -> Any:
        cipher = self._ciphers.get((id, salt))
        if cipher is None:
            key = self._keys[id]
            derived = hashlib.blake2b(salt, key=key, digest_size=len(key), person=_PERSON).digest()
            if len(self._ciphers) >= MAX_CIPHERS:
                self._ciphers.clear()
            cipher = self._ciphers[id, salt] = self._make(derived)
        return cipher

    def _mark(self, fingerprint: bytes) -> bytes:
        mark = self._marks.get(fingerprint)
        if mark is None:
            mark = self._marks[fingerprint] = hashlib.blake2b(b"sealed\0" + fingerprint, digest_size=8).digest()
        return mark


def _id_of(key: bytes) -> bytes:
    """Return what names a key in public, and says nothing of it."""
    return hashlib.blake2b(b"id", key=key, digest_size=4, person=_PERSON).digest()


def _associated(head: bytes, entry: Entry, mark: bytes) -> bytes:
    return head + mark + entry.row.encode("utf-8", "surrogatepass")
