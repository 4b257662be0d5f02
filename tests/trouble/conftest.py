"""Fixtures of the tests in which Redis forgets, or refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from trouble.places import Place


@pytest.fixture
def place() -> Iterator[Place]:
    """An address of the test's own, behind which no server is yet."""
    place = Place()
    yield place
    place.close()
