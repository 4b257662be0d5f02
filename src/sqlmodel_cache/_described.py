"""What a column type is, as a text that is equal in all processes of one release, and differs where its code does.

Two releases share a cache while they are deployed. If one of them has changed a `TypeDecorator`, or a class of the
values that it makes, rows that the other has cached are not what its own SELECT would give.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.types import ARRAY, TypeDecorator, TypeEngine

_LIMIT = 5_000  # descriptions; what lies beyond counts as unchanged

# Packages whose code is known by their names: theirs changes only with their release.
_FOREIGN = sys.stdlib_module_names | {
    "sqlalchemy", "sqlmodel", "pydantic", "pydantic_core", "msgspec", "typing_extensions", "annotated_types",
    "asyncpg", "psycopg", "psycopg2", "aiosqlite", "greenlet",
}  # fmt: skip
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes)
_REMEMBERED = type(functools.lru_cache(lambda: None))
_GENERATED = ("__pydantic_", "_abc_", "_sa_", "model_fields", "model_config")


def described(type_: TypeEngine[Any], dialect: Dialect) -> str:
    """Return the class of a type, its arguments, and the code of what is not a library's: of its variant, too."""
    chosen = type_.dialect_impl(dialect)
    parts = [_described(type_)]
    if isinstance(chosen, TypeDecorator) or not _foreign(type(chosen)):
        parts += _own(chosen)  # without what it wraps: that has a class for each driver
    return "\0".join(parts)


def _described(type_: TypeEngine[Any]) -> str:
    # A repr may hold an object's address, which differs between processes that must agree.
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(type_))
    inner = [type_.impl_instance] if isinstance(type_, TypeDecorator) else []
    inner += [type_.item_type] if isinstance(type_, ARRAY) else []
    return "\0".join([text, *_own(type_), *map(_described, inner)])


def _own(type_: TypeEngine[Any]) -> list[str]:
    description = _Description()
    description.visit(type(type_))
    if not _foreign(type(type_)):
        names = {name for owner in type(type_).__mro__ for name in _parameters(owner)}
        for name in sorted(names & vars(type_).keys()):
            description.visit(name)
            description.visit(vars(type_)[name])
    return description.parts


def _parameters(owner: type) -> list[str]:
    initialiser = vars(owner).get("__init__")
    return [] if initialiser is None or owner is object else list(inspect.signature(initialiser).parameters)


def _foreign(thing: Any) -> bool:
    module = getattr(thing, "__module__", None)
    return not isinstance(module, str) or module.partition(".")[0] in _FOREIGN - {"__main__"}


class _Description:
    """Walks over functions and classes, and whatever of the application these use."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._seen: dict[int, Any] = {}

    def visit(self, thing: Any) -> None:
        """Add the description of a thing."""
        if type(thing) in _CONSTANTS:
            self.parts.append(repr(thing))
            return
        if isinstance(thing, TypeEngine) and _foreign(type(thing)):
            return  # in the type's own text
        if id(thing) in self._seen or len(self._seen) > _LIMIT:
            self.parts.append(f"#{type(thing).__name__}")
            return
        self._seen[id(thing)] = thing
        self.parts.append(f"{type(thing).__qualname__} {_name(thing)}")
        for part in self._parts(thing):
            self.visit(part)

    def _parts(self, thing: Any) -> Iterator[Any]:
        if isinstance(thing, list | tuple):
            yield from thing
        elif isinstance(thing, set | frozenset):
            yield from sorted(repr(item) for item in thing if type(item) in _CONSTANTS)
        elif isinstance(thing, dict):
            for key, value in thing.items():
                yield from (key, value)
        elif isinstance(thing, types.CodeType):
            yield from (thing.co_code, thing.co_names, thing.co_varnames, thing.co_consts)
        elif isinstance(thing, classmethod | staticmethod | types.MethodType):
            yield thing.__func__
        elif isinstance(thing, property):
            yield from (thing.fget, thing.fset)
        elif isinstance(thing, functools.partial):
            yield from (thing.func, thing.args, thing.keywords)
        elif isinstance(thing, functools.cached_property):
            yield thing.func
        elif isinstance(thing, _REMEMBERED):
            yield thing.__wrapped__
        elif typing.get_args(thing):
            yield from typing.get_args(thing)
        elif _foreign(thing if isinstance(thing, type | types.FunctionType) else type(thing)):
            return
        elif isinstance(thing, types.FunctionType):
            yield from (thing.__code__, thing.__defaults__, thing.__kwdefaults__)
            yield from self._used(thing)
        elif isinstance(thing, enum.EnumMeta):
            yield from thing.__members__.items()
        elif isinstance(thing, enum.Enum):
            yield from (thing.name, thing.value)
        elif isinstance(thing, type):
            yield from thing.__bases__
            yield from self._defined(thing)
        else:
            yield from (type(thing), getattr(thing, "__dict__", None))

    def _used(self, function: types.FunctionType) -> Iterator[Any]:
        for cell in function.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not yet assigned
                continue
        yield from _named(_names(function.__code__), function.__globals__, set())

    def _defined(self, class_: type) -> Iterator[Any]:
        fields = vars(class_).get("__pydantic_fields__") or {}
        for name, field in sorted(fields.items()):
            yield from (name, field.annotation, field.default, field.default_factory, field.alias)
        for name, value in sorted(vars(class_).items()):
            if name.startswith(_GENERATED) or (name.startswith("__") and not _is_code(value)):
                continue  # some of these appear only when they are used
            yield from (name, getattr(value, "wrapped", value))
        hints = vars(class_).get("__annotations__")
        if isinstance(hints, dict) and not fields:
            yield from (part for pair in sorted(hints.items(), key=lambda pair: pair[0]) for part in pair)


def _is_code(value: object) -> bool:
    return isinstance(value, types.FunctionType | property | classmethod | staticmethod)


def _names(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _named(names: set[str], scope: dict[str, Any], searched: set[str]) -> Iterator[Any]:
    """Yield what a function's names stand for, also those that it looks up in modules of the application."""
    for name in sorted(names & scope.keys()):
        used = scope[name]
        if isinstance(used, types.ModuleType):
            if used.__name__.partition(".")[0] not in _FOREIGN and used.__name__ not in searched:
                searched.add(used.__name__)
                yield from _named(names, vars(used), searched)
        elif isinstance(used, _REMEMBERED | type | types.FunctionType | enum.Enum | tuple | frozenset) or (
            type(used) in _CONSTANTS
        ):
            yield from (name, used)


def _name(thing: Any) -> str:
    module, name = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", getattr(thing, "__name__", ""))
    return f"{module}.{name}" if isinstance(name, str) else ""
