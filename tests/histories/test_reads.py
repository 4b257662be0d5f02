"""Generated programs of get, get_many and get_by over two sessions: each sees what it sees without the cache."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from histories.test_histories import LONG, never_wait
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from session.members import Member, make_members
from sqlalchemy import Engine, delete, text, update
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from sqlalchemy.orm import Session

from sqlmodel_cache import MemoryTransport, SQLModelCache
from sqlmodel_cache._sqlalchemy import LoadProbe
from sqlmodel_cache._unique import UniqueKey

Step = tuple[Any, ...]
Seen = tuple[Any, ...] | None

LETTERS = "abcd"
PKS = range(1, 5)

who = st.integers(0, 1)
pks = st.sampled_from(PKS)
letters = st.sampled_from(LETTERS)
reads = st.one_of(
    st.tuples(st.just("get"), who, pks),
    st.tuples(st.sampled_from(["many", "many_elsewhere"]), who, st.permutations(PKS).map(tuple)),
    st.tuples(st.sampled_from(["by", "by_elsewhere"]), who, letters),
    st.tuples(st.sampled_from(["by_nick", "by_elsewhere"]), who, letters),
)
writes = st.one_of(
    st.tuples(st.sampled_from(["change", "core", "text", "by_key", "add", "swap"]), who, pks, letters),
    st.tuples(st.sampled_from(["remove", "delete", "rename"]), who, pks),
)
rest = st.tuples(
    st.sampled_from(["commit"] * 5 + ["rollback", "nest", "back", "release", "flush", "expire_all", "expunge_all"]), who
)
# A session that holds a row, another that writes it, and what the first then finds and stores of it by a key.
overtaken = st.builds(
    lambda who, pk: [
        ("by_elsewhere", who, LETTERS[pk - 1]),
        ("get", who, pk),
        ("commit", who),
        ("rename", 1 - who, pk),
        ("commit", 1 - who),
        ("by", who, LETTERS[pk - 1]),
        ("many_elsewhere", who, tuple(PKS)),
    ],
    who,
    pks,
)
# A key that a row gives away, and who asks for it before and after.
given_away = st.builds(
    lambda who, pk, letter: [
        ("by_elsewhere", who, LETTERS[pk - 1]),
        ("by_elsewhere", who, LETTERS[pk - 1]),
        ("core", who, pk, letter),
        ("commit", who),
        ("by_elsewhere", who, LETTERS[pk - 1]),
    ],
    who,
    pks,
    letters,
)
phrases = st.one_of(
    *([st.one_of(reads, reads, reads, writes, rest).map(lambda step: [step])] * 6), overtaken, given_away
)
programs = st.lists(phrases, min_size=5, max_size=30).map(lambda found: list(itertools.chain(*found)))


class Program:
    """Two sessions that perform steps; each returns what a program sees of it, or the name of an error."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions = [Session(engine), Session(engine, autoflush=False, expire_on_commit=False)]
        self._savepoints: list[list[Any]] = [[], []]
        self._serial = 0

    def step(self, step: Step) -> Any:
        """Perform one."""
        name, who, *arguments = step
        session = self._sessions[who]
        try:
            return getattr(self, name)(session, self._savepoints[who], *arguments)
        except (SQLAlchemyError, SAWarning) as error:
            session.rollback()
            session.expunge_all()
            self._savepoints[who].clear()
            return type(error).__name__

    def end(self) -> Any:
        """Return what is there in the end, as each kind of read sees it, twice."""
        for session in self._sessions:
            session.close()
        seen: list[Any] = []
        for _ in range(3):
            with Session(self._engine) as session:
                seen.append(self.many(session, [], tuple(PKS)))
                seen += [self.by(session, [], letter) for letter in LETTERS]
                seen += [self.get(session, [], pk) for pk in PKS]
        return seen

    # reads

    def get(self, session: Session, _: Any, pk: int) -> Seen:
        member = session.get(Member, pk)
        session.info.setdefault("kept", []).append(member)  # a session forgets what nobody holds
        return describe(member)

    def many(self, session: Session, _: Any, idents: tuple[int, ...]) -> list[Seen]:
        return [describe(member) for member in SQLModelCache.get_many(session, Member, idents)]

    def by(self, session: Session, _: Any, letter: str) -> Seen:
        return describe(SQLModelCache.get_by(session, Member, email=letter))

    def by_nick(self, session: Session, _: Any, letter: str) -> Seen:
        return describe(SQLModelCache.get_by(session, Member, nick=f"n{letter}"))

    def many_elsewhere(self, _: Session, __: Any, idents: tuple[int, ...]) -> list[Seen]:
        with Session(self._engine) as session:
            return self.many(session, None, idents)

    def by_elsewhere(self, _: Session, __: Any, letter: str) -> Seen:
        with Session(self._engine) as session:
            return self.by(session, None, letter)

    # writes

    def change(self, session: Session, _: Any, pk: int, letter: str) -> None:
        member = session.get(Member, pk)
        if member is not None:
            member.email, member.name = letter, member.name + "!"

    def core(self, session: Session, _: Any, pk: int, letter: str) -> None:
        session.execute(
            update(Member).where(Member.id == pk).values(email=letter),
            execution_options={"synchronize_session": False},
        )

    def rename(self, session: Session, _: Any, pk: int) -> None:
        self._serial += 1
        session.execute(
            update(Member).where(Member.id == pk).values(name=str(self._serial)),
            execution_options={"synchronize_session": False},
        )

    def text(self, session: Session, _: Any, pk: int, letter: str) -> None:
        session.execute(text(f"UPDATE m_member SET nick = 'n{letter}' WHERE id = {pk}"))

    def by_key(self, session: Session, _: Any, pk: int, letter: str) -> None:
        session.execute(update(Member).where(Member.email == letter).values(email=f"{letter}{pk}"))

    def swap(self, session: Session, _: Any, pk: int, letter: str) -> None:
        """Give the key to another row, whoever has it."""
        quietly: dict[str, Any] = {"execution_options": {"synchronize_session": False}}
        session.execute(update(Member).where(Member.email == letter).values(email=f"was {letter} {pk}"), **quietly)
        session.execute(update(Member).where(Member.id == pk).values(email=letter), **quietly)

    def add(self, session: Session, _: Any, pk: int, letter: str) -> None:
        if session.identity_key(Member, pk) not in session.identity_map:
            session.add(Member(id=pk, email=letter))

    def remove(self, session: Session, _: Any, pk: int) -> None:
        member = session.get(Member, pk)
        if member is not None:
            session.delete(member)

    def delete(self, session: Session, _: Any, pk: int) -> None:
        session.execute(delete(Member).where(Member.id == pk))

    # the transaction

    def commit(self, session: Session, savepoints: list[Any]) -> None:
        session.commit()
        savepoints.clear()

    def rollback(self, session: Session, savepoints: list[Any]) -> None:
        session.rollback()
        savepoints.clear()

    def nest(self, session: Session, savepoints: list[Any]) -> None:
        if len(savepoints) < 2:
            savepoints.append(session.begin_nested())

    def back(self, session: Session, savepoints: list[Any]) -> None:
        if savepoints:
            savepoints.pop().rollback()

    def release(self, session: Session, savepoints: list[Any]) -> None:
        if savepoints:
            savepoints.pop().commit()

    def flush(self, session: Session, _: Any) -> None:
        session.flush()

    def expire_all(self, session: Session, _: Any) -> None:
        session.expire_all()

    def expunge_all(self, session: Session, _: Any) -> None:
        session.expunge_all()


def describe(member: Member | None) -> Seen:
    """Return the values of a row as a program sees them."""
    return None if member is None else (member.id, member.email, member.nick, member.name)


def search(engine: Engine, transport: Any, examples: int, **options: Any) -> int:
    """Compare many programs with their uncached twins; return how many reads were hits."""
    hits = 0
    make_members(engine)

    def begin() -> None:
        SQLModelCache.reset()
        make_members(engine)

    def trace(steps: list[Step]) -> list[Any]:
        running = Program(engine)
        shown = [(step, running.step(step)) for step in steps]
        return [*shown, running.end()]

    def check(steps: list[Step]) -> None:
        nonlocal hits
        begin()
        plain = trace(steps)
        begin()
        transport.clear()
        SQLModelCache.configure(transport)
        assert trace(steps) == plain
        hits += SQLModelCache.stats().hits

    profile = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
        **options,
    )
    profile(given(programs)(check))()
    return hits


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_program_sees_what_its_uncached_twin_sees(engine: Engine) -> None:
    """Values and errors, step by step, and in the end by every kind of read."""
    examples = 60
    assert search(never_wait(engine), MemoryTransport(), examples * 40 if LONG else examples) > 5 * examples


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize("guard", ["the key is checked", "what the session holds is not stored"])
def test_programs_see_a_guard_that_is_missing(engine: Engine, guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, a program is found that shows it."""
    if guard == "the key is checked":
        monkeypatch.setattr(UniqueKey, "matches", lambda *_: True)
    else:
        original = LoadProbe.load

        def load(probe: Any, session: Any, mappers: Any, takes: Any, load: Any, instances: Any) -> Any:
            found = original(probe, session, mappers, {}, load, instances)
            for instance in instances(found):
                state = None if instance is None else instance._sa_instance_state
                if state is not None and state.key in takes:
                    takes[state.key](state.class_, state.dict, state.expired_attributes)
            return found

        monkeypatch.setattr(LoadProbe, "load", load)
    with pytest.raises(AssertionError):
        search(never_wait(engine), MemoryTransport(), 300, phases=[Phase.generate], derandomize=True)
