"""What can be seen of an object: everything that a program could tell two loads apart by, as plain data."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Session
from sqlmodel import SQLModel

_PYDANTIC = ("__pydantic_private__", "__pydantic_fields_set__", "__pydantic_extra__")
# Not a difference that means something: the object itself, counters of statements, and registries by address.
_NOT_COMPARED = {"obj", "runid", "session_id", "manager", "identity_token"}


def typed(value: object) -> Any:
    """Return a value as plain data that is equal only to the same value of the same type, at every depth."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if value is None or kind in (bool, int, str, bytes):
        return (name, value)
    state = inspect(value, raiseerr=False)
    if isinstance(state, InstanceState):
        return ("instance", name, None if state.key is None else (state.key[1], state.key[2]))
    if isinstance(value, dict):
        return (name, [(typed(key), typed(each)) for key, each in value.items()])
    if isinstance(value, list | tuple):
        return (name, [typed(each) for each in value])
    if isinstance(value, set | frozenset):
        return (name, sorted((typed(each) for each in value), key=repr))
    return (name, plain(repr(value)))


def plain(text: str) -> str:
    """Return a text without addresses and paths, which differ from run to run."""
    return re.sub(r"(truth|cached)\.db", "X.db", re.sub(r"0x[0-9a-fA-F]+", "0x", text))


def outcome(function: Callable[[], object]) -> Any:
    """Return what a call gives, or what it raises, by type and text."""
    try:
        return typed(function())
    except Exception as error:
        return ("raises", f"{type(error).__module__}.{type(error).__qualname__}", plain(str(error)))


def portrait(instance: Any) -> dict[str, Any]:
    """Return what can be seen of a mapped instance without changing it, its state included."""
    if instance is None:
        return {"none": True}
    state = inspect(instance)
    seen: dict[str, Any] = {
        "class": f"{type(instance).__module__}.{type(instance).__qualname__}",
        "key": typed(state.key),
        "identity": typed(state.identity),
        "identity_token": typed(state.identity_token),
        "committed_state": typed(state.committed_state),
        "load_options": typed(state.load_options),
        "load_path": plain(str(state.load_path)),
        "in session": state.session is not None,
        "state": {key: typed(value) for key, value in sorted(vars(state).items()) if key not in _NOT_COMPARED},
        "dict": [(key, typed(value)) for key, value in _beside(instance)],
        "repr": plain(repr(instance)) if type(instance).__repr__ is not object.__repr__ else "",
    }
    for flag in ("transient", "pending", "persistent", "deleted", "detached", "was_deleted", "modified", "expired"):
        seen[flag] = getattr(state, flag)
    for names in ("unloaded", "unmodified", "expired_attributes"):
        seen[names] = sorted(getattr(state, names))
    seen["values of state"] = {key: typed(state.attrs[key].loaded_value) for key in sorted(state.attrs.keys())}
    if state.session is not None:
        seen["in identity map"] = state.key is not None and state.session.identity_map.get(state.key) is instance
        seen["dirty"] = instance in state.session.dirty
        seen["is_modified"] = outcome(lambda: state.session.is_modified(instance))
    if isinstance(instance, SQLModel):
        for name in _PYDANTIC:
            try:
                seen[name] = typed(object.__getattribute__(instance, name))
            except AttributeError:
                seen[name] = "unset"
    return seen


def copies(instance: Any) -> dict[str, Any]:
    """Return how an instance copies, dumps, compares and pickles."""
    cls = type(instance)
    seen: dict[str, Any] = {
        "copy": outcome(lambda: _bare(copy.copy(instance))),
        "deepcopy": outcome(lambda: _bare(copy.deepcopy(instance))),
        "equal to itself": outcome(lambda: instance == instance),
        "equal to a copy": outcome(lambda: instance == copy.copy(instance)),
        "hash": outcome(lambda: hash(instance) is None) if cls.__hash__ is not object.__hash__ else None,
        "state pickled": outcome(lambda: _without(inspect(instance).__getstate__())),
        "pickled": outcome(lambda: portrait(pickle.loads(pickle.dumps(instance)))),
    }
    if isinstance(instance, SQLModel):
        seen["model_dump"] = outcome(instance.model_dump)
        seen["model_dump_json"] = outcome(instance.model_dump_json)
        seen["unset excluded"] = outcome(lambda: instance.model_dump(exclude_unset=True))
        seen["fields set"] = outcome(lambda: instance.model_fields_set)
        seen["extra"] = outcome(lambda: instance.model_extra)
        seen["model_copy"] = outcome(lambda: _bare(instance.model_copy()))
        seen["model_copy with update"] = outcome(lambda: _bare(instance.model_copy(update={"id": 77})))
        seen["validated"] = outcome(lambda: _bare(cls.model_validate(instance)))
        seen["dict()"] = outcome(lambda: dict(instance))
    return seen


def history(instance: Any) -> dict[str, Any]:
    """Return the history of every attribute."""
    return {attribute.key: outcome(lambda a=attribute: tuple(a.history)) for attribute in inspect(instance).attrs}


def content(session: Session) -> dict[str, Any]:
    """Return what a session holds."""
    return {
        "identity map": sorted(repr((key[0].__qualname__, key[1], key[2])) for key in session.identity_map),
        "new": len(session.new),
        "dirty": len(session.dirty),
        "deleted": len(session.deleted),
        "in_transaction": session.in_transaction(),
        "in_nested_transaction": session.in_nested_transaction(),
        "is_active": session.is_active,
    }


def _bare(instance: Any) -> Any:
    return [type(instance).__qualname__, dict(_beside(instance))]


def _beside(instance: Any) -> list[tuple[str, Any]]:
    """Return what is in an object, but for SQLAlchemy's state and caches."""
    skipped = ("_sa_instance_state", "_AssociationProxy_")
    return [(key, value) for key, value in vars(instance).items() if not key.startswith(skipped)]


def _without(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in ("instance", "manager")}
