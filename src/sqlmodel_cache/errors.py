"""The exception tree.

CacheError
├── ConfigurationError   a call or a declaration that cannot mean anything: mend it and call again
├── TransportError       the cache did not answer in time, or not in its own words
├── CodecError           bytes that are not a row of this model
├── InvalidationError    a commit was refused because its rows could not be fenced
└── FollowerError        a database cannot be followed as it is: mend it as the error says

`ConfigurationError`, `InvalidationError` and `FollowerError` reach application code. The other two end inside the
library as a counted miss, and are public because transports raise them.
"""

from __future__ import annotations


class CacheError(Exception):
    """Base of every error of this library."""


class ConfigurationError(CacheError, ValueError):
    """Raised for bad input; nothing has changed.

    Attributes:
        argument: the name of the parameter or attribute.
        value: what it was. With `hash_keys` the text says of a primary key only of which types it is.
    """

    def __init__(self, argument: str, value: object, remedy: str, *, hidden: bool = False) -> None:
        self.argument = argument
        self.value = value
        super().__init__(f"{argument}={_types(value) if hidden else _short(value)}: {remedy}")


class TransportError(CacheError):
    """Raised by a transport whose server is unreachable, late, or answers something that it should not.

    The command may still take effect later; the protocol is right in either case. The cause is attached.
    """


class CodecError(CacheError):
    """Raised by the codec for a payload that is not a row of this model, or a row that is no payload.

    Attributes:
        attribute: the name of the attribute whose value does not travel, where it is one.
    """

    def __init__(self, message: str, *, attribute: str | None = None) -> None:
        self.attribute = attribute
        super().__init__(message)


class InvalidationError(CacheError):
    """Raised from `commit()` in `refuse` mode, before the database's COMMIT; the transaction is rolled back."""


class FollowerError(CacheError):
    """Raised when a follower cannot begin; nothing has changed.

    Attributes:
        problems: pairs of what is wrong and the remedy.
    """

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{what}: {remedy}" for what, remedy in problems))


def _types(value: object) -> str:
    parts = value if isinstance(value, tuple | list) else (value,)
    return f"<{', '.join(type(part).__name__ for part in parts)}>"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
