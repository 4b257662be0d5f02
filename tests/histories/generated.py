"""Which histories are generated: operations of `world.py`, alone and in the phrases that programs are made of."""

from __future__ import annotations

import itertools

from histories.world import ROWS, WRITES, Operation
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

SESSIONS = 3

Phrase = list[Operation]

sessions = st.integers(0, SESSIONS - 1)
pks = st.sampled_from(ROWS)
writes = st.sampled_from(WRITES)


def phrases_of(session: int) -> SearchStrategy[Phrase]:
    """Return what one session may do next."""
    me = st.just(session)
    by_name = st.tuples(st.sampled_from(["change"] * 3 + ["add", "remove", "merge", "rekey", "move"]), me, pks)
    by_statement = st.one_of(
        st.tuples(st.just("bulk"), me, writes, pks, st.sampled_from(["auto", False])),
        st.tuples(st.just("core"), me, writes, pks),
        st.tuples(st.just("raw"), me, writes, pks),
    )
    write = st.one_of(by_name, by_statement)
    # Each as often as it stands here.
    read = st.tuples(
        st.sampled_from(["get"] * 6 + ["get_in_another_session"] * 4 + ["hold", "look", "get_uncached"]), me, pks
    )
    row = st.tuples(st.sampled_from(["expire", "expunge"]), me, pks)
    whole = st.tuples(
        st.sampled_from(
            ["commit"] * 3
            + ["rollback", "close_session", "flush", "nest", "release", "back", "expire_all"]
            + ["expunge_all"] * 3
            + ["select"]
        ),
        me,
    )
    end = st.sampled_from(["commit"] * 4 + ["rollback", "close_session"])
    body = st.lists(st.one_of(write, read), min_size=1, max_size=3)
    back = st.sampled_from(["back", "back", "release"])
    return st.one_of(
        st.lists(st.one_of(read, whole, read, row), min_size=1, max_size=3),
        st.builds(lambda body: [*body, ("flush", session), ("expunge_all", session)], body),
        st.builds(lambda body, how: [("nest", session), *body, (how, session)], body, back),
        st.builds(
            lambda first, body, how, end: [*first, ("nest", session), *body, (how, session), (end, session)],
            body, body, back, end,
        ),
        st.builds(lambda body, end: [*body, (end, session)], body, end),
    )  # fmt: skip


outside: SearchStrategy[Phrase] = st.builds(
    lambda kind, pk, form, then: [("outside", kind, pk, form), then],
    writes,
    pks,
    st.sampled_from(["core", "text"]),
    st.tuples(st.just("get_in_another_session"), sessions, pks),
)
# A transaction that has read, another's commit, and what the first may see and store of it.
overtaken: SearchStrategy[Phrase] = st.builds(
    lambda session, other, pk, then: [
        ("get_uncached", session, other),
        ("outside", "update pk", pk, "core"),
        ("get", session, pk),
        ("get_in_another_session", then, pk),
    ],
    sessions,
    pks,
    pks,
    sessions,
)
losses: SearchStrategy[Phrase] = st.builds(lambda which: [("lose", which)], st.none() | st.integers(0, 11))
phrases = st.one_of(*(phrases_of(session) for session in range(SESSIONS)), outside, overtaken, losses)
histories: SearchStrategy[list[Operation]] = st.lists(phrases, min_size=3, max_size=20).map(
    lambda found: list(itertools.chain(*found))
)
