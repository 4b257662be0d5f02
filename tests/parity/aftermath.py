"""What may happen to an object after it was got. Each is a scenario that is run for every model of the zoo."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

from parity.case import Case
from parity.looks import content, copies, history
from parity.runner import Scenario, World
from sqlalchemy import delete, inspect, select, update
from sqlalchemy.orm import Session, attributes, load_only, make_transient, make_transient_to_detached, undefer

Aftermath = Callable[[World, Session, Any, Case], None]
AFTERMATHS: dict[str, Aftermath] = {}


def aftermath(function: Aftermath) -> Aftermath:
    """Register a scenario."""
    AFTERMATHS[function.__name__] = function
    return function


def change(obj: Any, case: Case) -> None:
    """Change the object, if the case says how."""
    if case.change is not None:
        setattr(obj, case.change[0], copy.deepcopy(case.change[1]))


def touch(world: World, obj: Any) -> None:
    """Read every attribute: what is not loaded is loaded, or raises."""
    for attribute in sorted(inspect(obj).mapper.all_orm_descriptors.keys()):
        if not attribute.startswith("__"):
            world.attempt(attribute, lambda name=attribute: _read(getattr(obj, name)))


def _read(value: Any) -> Any:
    if hasattr(value, "all") and not isinstance(value, list | dict):
        return value.all()  # dynamic
    return list(value) if type(value).__name__ == "_AssociationList" else value


@aftermath
def nothing(world: World, session: Session, obj: Any, case: Case) -> None:
    """It is looked at."""
    world.see("content", content(session))
    world.see("copies", copies(obj))
    world.see("history", history(obj))
    world.look("afterwards", obj)


@aftermath
def read_all(world: World, session: Session, obj: Any, case: Case) -> None:
    """Every attribute is read: deferred columns, relationships, expressions."""
    touch(world, obj)
    world.look("touched", obj)
    session.commit()
    touch(world, obj)


@aftermath
def get_again(world: World, session: Session, obj: Any, case: Case) -> None:
    """A second get gives the same object, without SQL, and so does a select."""
    world.see("same", session.get(case.model, case.ident) is obj)
    world.see("one", session.get_one(case.model, case.ident) is obj)
    world.see("selected", session.scalars(select(case.model)).first() is obj)
    world.look("selected", obj)


@aftermath
def commit(world: World, session: Session, obj: Any, case: Case) -> None:
    """A commit expires it; the next access loads it."""
    session.commit()
    world.look("committed", obj)
    world.see("content", content(session))
    touch(world, obj)
    world.look("touched", obj)


@aftermath
def rollback(world: World, session: Session, obj: Any, case: Case) -> None:
    """A rollback expires it."""
    change(obj, case)
    world.look("changed", obj)
    session.rollback()
    world.look("rolled back", obj)
    touch(world, obj)


@aftermath
def expire(world: World, session: Session, obj: Any, case: Case) -> None:
    """Expiry of all of it, of one attribute, and a get of an expired object."""
    session.expire(obj)
    world.look("expired", obj)
    world.see("same", session.get(case.model, case.ident) is obj)
    world.look("got", obj)
    for attribute in inspect(obj).mapper.column_attrs.keys():  # noqa: SIM118
        session.expire(obj, [attribute])
        world.look(f"without {attribute}", obj)
    touch(world, obj)
    world.look("touched", obj)


@aftermath
def refresh(world: World, session: Session, obj: Any, case: Case) -> None:
    """A refresh of all of it, of one attribute, with a lock."""
    session.refresh(obj)
    world.look("refreshed", obj)
    names = inspect(obj).mapper.column_attrs.keys()
    world.attempt("one", lambda: session.refresh(obj, [names[-1]]))
    world.look("one", obj)
    session.refresh(obj, with_for_update=True)
    world.look("locked", obj)


@aftermath
def flush(world: World, session: Session, obj: Any, case: Case) -> None:
    """A change is flushed, and again, and committed."""
    change(obj, case)
    world.see("history", history(obj))
    world.look("changed", obj)
    session.flush()
    world.look("flushed", obj)
    session.flush()
    world.see("got", session.get(case.model, case.ident) is obj)
    session.commit()
    world.look("committed", obj)
    touch(world, obj)


@aftermath
def flush_then_rollback(world: World, session: Session, obj: Any, case: Case) -> None:
    """A change is flushed and rolled back; another session never sees it."""
    change(obj, case)
    session.flush()
    session.rollback()
    world.look("rolled back", obj)
    touch(world, obj)
    session.rollback()
    with Session(world.engine) as other:
        world.look("elsewhere", world.get(other, case.model, case.ident, case.kind))


@aftermath
def no_change(world: World, session: Session, obj: Any, case: Case) -> None:
    """Attributes that are set to the value that they have make the object modified, but are not flushed."""
    for attribute in inspect(obj).mapper.column_attrs.keys():  # noqa: SIM118
        if attribute in vars(obj):
            world.attempt(attribute, lambda name=attribute: setattr(obj, name, getattr(obj, name)))
    world.look("set", obj)
    world.see("history", history(obj))
    world.attempt("flush", session.flush)
    session.rollback()
    world.look("flushed", obj)
    if case.change is not None and inspect(obj).mapper.column_attrs.keys()[-1] in vars(obj):
        attributes.flag_modified(obj, inspect(obj).mapper.column_attrs.keys()[-1])
        world.look("flagged", obj)
        session.commit()
        world.look("committed", obj)


@aftermath
def delete_and_commit(world: World, session: Session, obj: Any, case: Case) -> None:
    """It is deleted; a get finds nothing, in this session and in another."""
    session.delete(obj)
    world.look("marked", obj)
    world.see("marked", session.get(case.model, case.ident) is obj)
    session.flush()
    world.look("deleted", obj)
    world.look("got", session.get(case.model, case.ident))
    session.commit()
    world.look("committed", obj)
    with Session(world.engine) as other:
        world.look("elsewhere", other.get(case.model, case.ident))


@aftermath
def delete_and_rollback(world: World, session: Session, obj: Any, case: Case) -> None:
    """It is deleted and comes back."""
    session.delete(obj)
    session.flush()
    session.rollback()
    world.look("rolled back", obj)
    world.see("same", session.get(case.model, case.ident) is obj)
    world.look("got", obj)
    with Session(world.engine) as other:
        world.look("elsewhere", world.get(other, case.model, case.ident, case.kind))


@aftermath
def expunge(world: World, session: Session, obj: Any, case: Case) -> None:
    """It is expunged, another is got in its place, it is added again, or merged."""
    session.expunge(obj)
    world.look("expunged", obj)
    touch(world, obj)
    other = world.get(session, case.model, case.ident, case.kind)
    world.see("another", other is not obj)
    world.look("another", other)
    world.attempt("two of one identity", lambda: session.add(obj))
    session.expunge(other)
    session.add(obj)
    world.look("added", obj)
    session.expunge_all()
    world.see("merged", session.merge(obj) is obj)
    world.see("content", content(session))
    world.see("dirty", list(session.dirty))


@aftermath
def merge(world: World, session: Session, obj: Any, case: Case) -> None:
    """It is merged into another session, with and without loading, and an object that was made is merged over it."""
    session.expunge(obj)
    with Session(world.engine) as other:
        merged = other.merge(obj)
        world.look("merged", merged)
    with Session(world.engine) as other:
        world.attempt("without loading", lambda: world.look("merged", other.merge(obj, load=False)))
    with Session(world.engine) as other:
        present = world.get(other, case.model, case.ident, case.kind)
        change(obj, case)
        world.see("same", other.merge(obj) is present)
        world.look("present", present)
        other.flush()
        other.rollback()
    again = world.get(session, case.model, case.ident, case.kind)
    world.attempt("merged over", lambda: session.merge(pickle.loads(pickle.dumps(obj))))
    world.look("merged over", again)
    session.commit()
    world.look("committed", again)


@aftermath
def make_it_transient(world: World, session: Session, obj: Any, case: Case) -> None:
    """make_transient, and what an INSERT of it says; make_transient_to_detached."""
    make_transient(obj)
    world.look("transient", obj)
    touch(world, obj)
    make_transient_to_detached(obj)
    world.look("detached", obj)
    session.add(obj)
    world.look("added", obj)
    touch(world, obj)
    session.expunge(obj)
    make_transient(obj)
    session.add(obj)
    world.attempt("inserted", session.flush)
    world.attempt("after a failed flush", lambda: session.get(case.model, case.ident))
    session.rollback()
    world.look("rolled back", obj)
    world.look("got", world.get(session, case.model, case.ident, case.kind))


@aftermath
def close(world: World, session: Session, obj: Any, case: Case) -> None:
    """The session is closed; the object is detached, and loads nothing more."""
    session.close()
    world.look("detached", obj)
    touch(world, obj)
    world.see("copies", copies(obj))
    again = world.get(session, case.model, case.ident, case.kind)
    world.see("another", again is not obj)
    world.look("again", again)


@aftermath
def savepoint(world: World, session: Session, obj: Any, case: Case) -> None:
    """It is changed in a savepoint that is rolled back, and in one that is released."""
    with session.begin_nested() as nested:
        change(obj, case)
        nested.rollback()
    world.look("rolled back", obj)
    touch(world, obj)
    with session.begin_nested():
        change(obj, case)
        world.see("got", session.get(case.model, case.ident) is obj)
    world.look("released", obj)
    session.commit()
    world.look("committed", obj)
    touch(world, obj)


@aftermath
def elsewhere(world: World, session: Session, obj: Any, case: Case) -> None:
    """Another session changes the row: this object stays, until it is refreshed; a version makes its flush fail."""
    with Session(world.engine) as other:
        change(world.get(other, case.model, case.ident, case.kind), case)
        other.commit()
    world.look("still", obj)
    session.expunge_all()
    world.look("got anew", session.get(case.model, case.ident))
    session.expunge_all()
    session.add(obj)
    names = [a for a in inspect(obj).mapper.column_attrs.keys() if case.change and a == case.change[0]]  # noqa: SIM118
    for name in names:
        attributes.flag_modified(obj, name) if name in vars(obj) else None
    world.attempt("flush", session.flush)
    session.rollback()
    world.look("rolled back", obj)
    touch(world, obj)


@aftermath
def bulk_update(world: World, session: Session, obj: Any, case: Case) -> None:
    """ORM UPDATE and DELETE statements with each way to synchronise what the session holds."""
    if case.change is None or case.change[0] not in inspect(case.model).mapper.column_attrs:
        world.see("nothing", None)
        return
    name, value = case.change
    for how in ("evaluate", "fetch", "auto", False):
        world.attempt(
            f"update {how}",
            lambda how=how: (
                session.execute(
                    update(case.model).values({name: copy.deepcopy(value)}),
                    execution_options={"synchronize_session": how},
                ).rowcount
            ),
        )
        world.look(f"update {how}", obj)
        session.rollback()
        touch(world, obj)
    world.attempt("delete", lambda: session.execute(delete(case.model)).rowcount)
    world.look("delete", obj)
    session.rollback()
    world.look("rolled back", obj)


@aftermath
def select_onto(world: World, session: Session, obj: Any, case: Case) -> None:
    """SELECTs with options find the object that a get has loaded."""
    for attribute in inspect(case.model).mapper.column_attrs:
        world.see(
            "undefer", session.scalars(select(case.model).options(undefer(attribute.class_attribute))).first() is obj
        )
        world.look("undefer", obj)
    columns = inspect(case.model).mapper.column_attrs.values()
    session.scalars(select(case.model).options(load_only(columns[0].class_attribute))).first()
    world.look("load_only", obj)
    session.scalars(select(case.model).execution_options(populate_existing=True)).first()
    world.look("populate_existing", obj)
    session.get(case.model, case.ident, populate_existing=True)
    world.look("get populate_existing", obj)
    session.get(case.model, case.ident, with_for_update=True)
    world.look("get with_for_update", obj)


@aftermath
def forget(world: World, session: Session, obj: Any, case: Case) -> None:
    """A pickled copy comes back into a session."""
    data = pickle.dumps(obj)
    session.close()
    back = pickle.loads(data)
    world.look("unpickled", back)
    session.add(back)
    world.look("added", back)
    touch(world, back)
    session.commit()
    touch(world, back)


def garbage(case: Case) -> Scenario:
    """Nothing but the caller keeps an unmodified object alive; the session keeps a modified one."""

    def scenario(world: World) -> None:
        world.warm(case.model, case.ident)
        gc.collect()
        gc.disable()
        try:
            with Session(world.engine) as session:
                dead = weakref.ref(world.get(session, case.model, case.ident, case.kind))
                world.see("unmodified", dead() is None)
                world.see("content", content(session))
                again = world.get(session, case.model, case.ident, case.kind)
                change(again, case)
                weak = weakref.ref(again)
                del again
                world.see("modified", weak() is None)
                world.see("content", content(session))
                session.flush()
                world.see("flushed", weak() is None)
        finally:
            gc.enable()

    scenario.__name__ = f"{case} garbage"
    return scenario
