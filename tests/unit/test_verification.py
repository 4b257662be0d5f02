"""The bound of a verification, and its sample."""

from __future__ import annotations

from math import comb

import pytest
from models import Gadget, Hero
from sqlalchemy import inspect
from sqlmodel import Session, SQLModel, create_engine
from sqlmodel.pool import StaticPool

from sqlmodel_cache._sampling import sample_keys
from sqlmodel_cache.verification import Verification, upper_bound


@pytest.mark.parametrize(("found", "compared"), [(0, 1), (0, 59), (1, 59), (3, 100), (40, 100), (99, 100)])
def test_bound_is_where_one_in_twenty_finds_so_few(found: int, compared: int) -> None:
    """The definition of Clopper and Pearson, with the binomial coefficients written out."""
    p = upper_bound(found, compared)
    chance = sum(comb(compared, k) * p**k * (1 - p) ** (compared - k) for k in range(found + 1))
    assert chance == pytest.approx(0.05, rel=1e-6)


def test_bound_without_a_discrepancy_is_three_by_the_number_of_rows() -> None:
    """The rule of three; without a row nothing is known; with nothing but discrepancies nothing is excluded."""
    assert upper_bound(0, 10_000) == pytest.approx(3 / 10_000, rel=2e-3)
    assert upper_bound(0, 0) == upper_bound(7, 7) == 1.0
    assert upper_bound(50, 1_000_000) == pytest.approx(6.3e-5, rel=1e-2)
    assert Verification("m", 5, 0, 0, 0, 0).bound == 1.0


@pytest.fixture
def session() -> Session:
    """A session on a database in memory."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    SQLModel.metadata.create_all(engine)
    return Session(engine)


def keys(session: Session, model: type, size: int) -> set[tuple[object, ...]]:
    """Return a sample, in which no key is twice."""
    found = sample_keys(session, inspect(model), size)
    assert len(set(found)) == len(found)
    return set(found)


def test_small_table_is_sampled_whole(session: Session) -> None:
    """And an empty one not at all."""
    assert keys(session, Hero, 10) == set()
    session.add_all(Hero(id=number, name="Rusty") for number in range(1, 8))
    session.flush()
    assert keys(session, Hero, 10) == {(number,) for number in range(1, 8)}
    session.close()


def test_dense_numbers_are_drawn_and_gaps_with_them(session: Session) -> None:
    """So that what was deleted behind the cache is found, and a quarter of the table costs a quarter."""
    session.add_all(Hero(id=number, name="Rusty") for number in range(1, 2_001, 2))
    session.flush()
    found = keys(session, Hero, 250)
    assert 420 < len(found) < 590  # half of the numbers are rows
    assert any(isinstance(number, int) and number % 2 == 0 for (number,) in found)
    session.close()


def test_sparse_numbers_and_other_keys_are_ordered_at_random(session: Session) -> None:
    """Rows only, and no more than were asked for."""
    ids = {(number * 1_000_003,) for number in range(1, 41)}
    session.add_all(Hero(id=number, name="Rusty") for (number,) in ids)
    session.add_all(Gadget(owner="a", number=number) for number in range(40))
    session.flush()
    for model, every in ((Hero, ids), (Gadget, {("a", number) for number in range(40)})):
        first, second = keys(session, model, 20), keys(session, model, 20)
        assert len(first) == 20
        assert first <= every
        assert first != second
    session.close()
