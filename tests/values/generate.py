"""Values of every kind, as hypothesis makes them, the same in every run."""

from __future__ import annotations

import datetime
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

UTC = datetime.UTC
ZONES = [UTC, *(datetime.timezone(datetime.timedelta(minutes=m)) for m in (-720, -210, 60, 345, 840))]

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
dates = st.dates()
naive = st.datetimes()
aware = st.datetimes(datetime.datetime(1, 1, 3), datetime.datetime(9999, 12, 29), timezones=st.sampled_from(ZONES))
times = st.times()
zoned_times = st.times(timezones=st.sampled_from(ZONES))
spans = st.timedeltas(datetime.timedelta(days=-100_000), datetime.timedelta(days=100_000))
floats = st.floats()
finite = st.floats(allow_nan=False, allow_infinity=False)
int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)


def decimals(places: int, digits: int) -> SearchStrategy[Any]:
    """Return decimals that fit a NUMERIC of so many digits."""
    limit = 10 ** (digits - places) - 1
    return st.decimals(-limit, limit, places=places, allow_nan=False, allow_infinity=False)


def json(leaves: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Return nested documents."""
    inner = st.none() | st.booleans() | leaves | text
    return st.recursive(inner, lambda v: st.lists(v, max_size=4) | st.dictionaries(text, v, max_size=4), max_leaves=12)


documents = json(int64 | finite)
vast_documents = json(st.integers(-(2**200), 2**200) | finite)


def generated(strategy: SearchStrategy[Any], count: int) -> list[Any]:
    """Return values of a strategy: always the same ones."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found
