"""What pytest imports when it starts: one fixture, and nothing of the library before a test asks for it.

It stands outside the package, because whoever imports a module of a package imports the package first: SQLAlchemy and
SQLModel with it, in every run of pytest, before a coverage tool has begun to look.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlmodel_cache.testing import CacheFixture


@pytest.fixture
def sqlmodel_cache() -> Iterator[CacheFixture]:
    """A cache of its own for this test, in memory; see `sqlmodel_cache.testing.CacheFixture`."""
    from sqlmodel_cache.testing import fresh_cache

    with fresh_cache() as cache:
        yield cache
