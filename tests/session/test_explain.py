"""`SQLModelCache.explain()`: why gets of a model are cached, or are not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from conftest import Store
from models import Badge, Hero, Plain, add_hero
from session.test_inheritance import Hermit, Manager, Odd, Owner, Person
from sqlalchemy import Engine, Integer, TypeDecorator
from sqlmodel import Field, Session, SQLModel

from sqlmodel_cache import CacheConfig, ConfigurationError, SQLModelCache


class Opaque:
    """A value that no codec knows, and that equals nothing but itself."""


class OpaqueType(TypeDecorator[Opaque]):
    """Loads such values."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> int:
        """Store something."""
        return 1

    def process_result_value(self, value: Any, dialect: Any) -> Opaque:
        """Load something."""
        return Opaque()


class Strange(SQLModel, table=True):
    """Two of its columns cannot be cached."""

    __cache_config__ = CacheConfig()
    model_config = {"arbitrary_types_allowed": True}
    id: int | None = Field(default=None, primary_key=True)
    thing: Any = Field(sa_type=OpaqueType)
    other: Any = Field(sa_type=OpaqueType)


def test_cached_model() -> None:
    """Table, key, TTLs, and what a hit sets."""
    SQLModelCache.configure(default_ttl=60)
    hero = SQLModelCache.explain(Hero)
    assert (hero.cached, hero.reason) == (True, None)
    assert (hero.table, hero.primary_key, hero.ttl, hero.missing_ttl) == ("hero", ("id",), 600, None)
    assert hero.attributes == ("id", "name", "age", "team_id")
    assert "Hero is cached" in str(hero)
    badge = SQLModelCache.explain(Badge)
    assert (badge.ttl, badge.missing_ttl) == (60, 30)
    assert "absence for 30 s" in str(badge)


def test_model_that_is_not_cached() -> None:
    """No declaration, a disabled one, a mapping that is refused, and no configuration."""
    reasons = {
        Plain: "it has no __cache_config__",
        Hermit: "its CacheConfig is not enabled",
        Odd: "its subclasses are told apart by an SQL expression (polymorphic_on)",
    }
    SQLModelCache.configure()
    for model, reason in reasons.items():
        found = SQLModelCache.explain(model)
        assert (found.cached, found.reason) == (False, reason)
        assert str(found).endswith(f"is not cached: {reason}")
    SQLModelCache.configure(enabled=False)
    assert SQLModelCache.explain(Hero).reason == "configure(enabled=False)"
    SQLModelCache.reset()
    assert SQLModelCache.explain(Hero).reason == "SQLModelCache is not configured"


def test_family() -> None:
    """Subclasses that a get may find, and why some of them are not stored."""
    SQLModelCache.configure()
    person = SQLModelCache.explain(Person)
    assert person.cached
    assert Manager.__qualname__ in person.subclasses
    assert person.refused["Hermit"] == "its CacheConfig is not enabled"
    assert "'boss'" in person.refused[Owner.__qualname__]
    assert "refused      Hermit: its CacheConfig" in str(person)
    assert "hour" not in person.attributes


@pytest.mark.parametrize("model", [5, "Hero", None, int, SQLModel])
def test_what_is_not_mapped_is_an_error(model: Any) -> None:
    """Only a mapped class can be explained."""
    with pytest.raises(ConfigurationError, match="give a mapped class"):
        SQLModelCache.explain(model)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_values_that_cannot_be_stored(engine: Engine, cache: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Each attribute that keeps rows from being stored is named, by one warning and from then on by explain()."""
    with Session(engine) as session:
        session.add_all([Strange(thing=Opaque(), other=Opaque()) for _ in range(3)])
        session.commit()
    add_hero(engine)
    with caplog.at_level(logging.WARNING, "sqlmodel_cache"):
        for pk in (1, 2, 3, 1):
            with Session(engine) as session:
                assert type(session.get_one(Strange, pk).thing) is Opaque
    assert len(caplog.messages) == 1
    strange = SQLModelCache.explain(Strange)
    [[attribute, why]] = strange.not_stored.items()
    assert attribute in ("thing", "other")
    assert attribute in why
    assert "Strange" in caplog.messages[0]
    assert attribute in caplog.messages[0]
    assert why in str(strange)
    assert cache.values() == {}
    assert SQLModelCache.stats().uncached == 4
    assert SQLModelCache.explain(Hero).not_stored == {}
