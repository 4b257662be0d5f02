"""Which mapped classes are cached, and which tables matter to them: the registry of one configuration."""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper

from . import _keys, _sqlalchemy
from ._foreign_keys import replaces, rewriters
from ._shapes import CachedTable, Entity, Refused, cached_table, entity_of, tables_of
from .config import CONFIG_ATTRIBUTE, CacheConfig, config_of
from .errors import ConfigurationError
from .metrics import Counters, ModelCounters


@dataclass(slots=True)
class Interest:
    """Why a table's name matters: tables of that name that are cached, and cached tables that foreign keys rewrite."""

    cached: list[CachedTable] = field(default_factory=list)
    on_delete: set[CachedTable] = field(default_factory=set)
    on_update: dict[CachedTable, set[str]] = field(default_factory=dict)  # -> the columns that are referred to
    on_truncate: set[CachedTable] = field(default_factory=set)  # by TRUNCATE ... CASCADE, whatever the rules say
    replaces: bool = False  # an INSERT may delete other rows, because the table says so


class Entities:
    """All cached classes. Made anew, in place, when a mapper or a table appears, or a mapper goes."""

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = counters or Counters()
        self._by_class: dict[type, Entity | None] = {}  # keeps classes alive, but not beyond the next one's mapping
        self._refusals: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
        self._disposed: weakref.WeakSet[type] = weakref.WeakSet()
        self._interests: dict[str, Interest] | None = None
        self._owners: dict[str, ModelCounters] | None = None
        self._gathered: dict[str, Interest] = {}  # only grows: a class may be gone and its rows still cached
        self._mentions: re.Pattern[str] | None = None
        self.generation = 0  # changes with the answers below, for whoever keeps them

    def changed(self) -> None:
        """Forget the answers: a mapper or a table was made."""
        self._by_class = {}
        self._interests = self._owners = None
        self.generation += 1

    def disposed(self, class_: type) -> None:
        """Forget a class that is no longer mapped; what a get of it means is SQLAlchemy's to say."""
        self._disposed.add(class_)
        self.changed()

    def get(self, class_: Any) -> Entity | None:
        """Return the cached class, or None if it is not cached.

        Raises:
            ConfigurationError: a wrong `__cache_config__`, or one on a class without a table.
        """
        try:
            return self._by_class[class_]
        except (KeyError, TypeError):
            return self._find(class_)

    def check(self) -> None:
        """Raise ConfigurationError for a mapped class whose `__cache_config__` is wrong."""
        for class_ in [mapper.class_ for mapper in _sqlalchemy.mappers()]:
            config_of(class_)

    def named(self, class_: object, pk: object = None, *, hidden: bool = False) -> tuple[CachedTable, str | None]:
        """Return the table of a class that a caller names, and the text of a primary key if one is given.

        `hidden` keeps the key out of the error's text.

        Raises:
            ConfigurationError: the class is not declared cached, or the key is not one of its primary keys.
        """
        mapper: Any = inspect(class_, raiseerr=False) if isinstance(class_, type) else None
        config = config_of(mapper.class_) if isinstance(mapper, Mapper) else None
        if config is None:
            raise ConfigurationError("model", class_, f"give a mapped class with a {CONFIG_ATTRIBUTE}")
        try:
            cached = cached_table(mapper, config)
        except Refused as why:
            raise ConfigurationError("model", class_, f"it is never cached: {why}") from None
        if pk is None:
            return cached, None
        text = cached.pk_text(pk if isinstance(pk, tuple | list) else (pk,))
        if text is None:
            wanted = ", ".join(
                f"{name}: {t.__name__}" for name, t in zip(cached.pk_columns, cached.pk_types, strict=True)
            )
            remedy = f"give the primary key of {mapper.class_.__name__}: ({wanted})"
            raise ConfigurationError("pk", pk, remedy, hidden=hidden)
        return cached, text

    def longest_ttl_ms(self) -> int:
        """Return the longest ttl that a mapped class declares, 0 if none does."""
        configs = [getattr(mapper.class_, CONFIG_ATTRIBUTE, None) for mapper in _sqlalchemy.mappers()]
        ttls = [(config.ttl_ms, config.missing_ttl_ms) for config in configs if isinstance(config, CacheConfig)]
        return max((ttl for pair in ttls for ttl in pair if ttl is not None), default=0)

    def all_tables(self) -> list[CachedTable]:
        """Return every cached table."""
        return [cached for interest in self.interests().values() for cached in interest.cached]

    def refusal(self, class_: type) -> str | None:
        """Return why a class with a `CacheConfig` is not cached, or None if it is, or does not ask to be."""
        self.get(class_)
        return self._refusals.get(class_)

    def _find(self, class_: Any) -> Entity | None:
        if not isinstance(class_, type):
            return None
        config = config_of(class_)
        found: Entity | None = None
        if config is not None:
            mapper: Any = inspect(class_, raiseerr=False)
            if not isinstance(mapper, Mapper):
                if class_ in self._disposed:
                    return None
                raise ConfigurationError(
                    "entity", class_, f"it has {CONFIG_ATTRIBUTE} but no table; declare the model with table=True"
                )
            try:
                if not config.enabled:
                    raise Refused("its CacheConfig is not enabled")
                found = entity_of(mapper, config, self._counters.model(class_))
            except Refused as why:
                self._refusals[class_] = str(why)
        self._by_class[class_] = found
        if found is not None and config is not None:
            if not all(self._matters(cached) for _, cached in tables_of(found.mapper, config)):
                self._interests = self._owners = None  # declared after the mapping: the tables must know from now on
                self.generation += 1
                self.interests()
        return found

    def _matters(self, cached: CachedTable) -> bool:
        interest = self.interest(cached.name)
        return interest is not None and cached in interest.cached

    def interest(self, table: str) -> Interest | None:
        """Return why writes to a table of this name matter, or None if they do not."""
        return self.interests().get(table.lower())

    def interests(self) -> dict[str, Interest]:
        """Return all table names that matter, in lower case: a write in plain SQL may spell them in any."""
        interests = self._interests
        if interests is None:
            interests = self._collect()
            self._mentions = _mentions(list(interests))
            self._interests = interests
        return interests

    def counters_of(self, table: str) -> ModelCounters | None:
        """Return the counters of the model whose rows are in a table, given its name in keys; None if there is none.

        Of several it is the one that the others inherit from. The name may be in another schema than the table's.
        """
        owners = self._owners
        if owners is None:
            owners = self._owners = self._find_owners()
        return owners.get(table) or owners.get(table.rpartition(".")[2])

    def _find_owners(self) -> dict[str, ModelCounters]:
        found: dict[str, type] = {}
        for mapper in sorted(_sqlalchemy.mappers(), key=lambda mapper: len(list(mapper.iterate_to_root()))):
            try:
                config = config_of(mapper.class_)
                cached = None if config is None else cached_table(mapper, config)
            except (ConfigurationError, Refused):
                continue  # said where the class is used
            if cached is not None:
                found.setdefault(_keys.table_name(cached.schema, cached.family), mapper.class_)
        bare = {name.rpartition(".")[2]: class_ for name, class_ in found.items()}
        return {name: self._counters.model(class_) for name, class_ in {**bare, **found}.items()}

    def mentioned_in(self, sql: str) -> set[tuple[str | None, str]]:
        """Return the (schema, name) of every table that matters and whose name stands in a statement."""
        if not self.interests() or self._mentions is None:
            return set()
        mentioned = set()
        for found in self._mentions.finditer(sql):
            schema = found["schema"]
            mentioned.add((schema and schema.strip('"`[]'), found["table"]))
            if schema is not None and schema[0] not in '"`[':
                mentioned.add((schema.lower(), found["table"]))  # some databases fold a name without quotes
        return mentioned

    def _collect(self) -> dict[str, Interest]:
        # Mappers may be half configured at this moment, and configuring them here could fail for good. So a class
        # that its relationships would refuse counts too: its writes fence in vain, which is harmless.
        # 1 get, a fill   2 the class is disposed of   3 DELETE   4 another class is mapped to the table   5 get
        # A DELETE that was not fenced would make 5 a hit of what was deleted. So a table of interest stays one.
        interests = self._gathered
        for mapper in list(_sqlalchemy.mappers()):
            try:
                config = config_of(mapper.class_)
                tables = [] if config is None else tables_of(mapper, config)
            except (ConfigurationError, Refused):
                continue  # said where the class is used
            for table, cached in tables:
                mine = interests.setdefault(cached.name.lower(), Interest())
                if cached not in mine.cached:
                    mine.cached.append(cached)
                mine.replaces |= replaces(table)
                for rewriter in rewriters(table):
                    theirs = interests.setdefault(rewriter.name.lower(), Interest())
                    theirs.replaces |= rewriter.table is not None and replaces(rewriter.table)
                    if rewriter.action == "update":
                        theirs.on_update.setdefault(cached, set()).update(rewriter.columns)
                    else:
                        (theirs.on_delete if rewriter.action == "delete" else theirs.on_truncate).add(cached)
        return interests


def _mentions(names: list[str]) -> re.Pattern[str] | None:
    if not names:
        return None
    any_name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    quote = r'["`\[\]]?'
    schema = r'(?P<schema>"[^"]+"|`[^`]+`|\[[^\]]+\]|[\w$]+)'
    return re.compile(rf"(?<!\w)(?:{schema}\s*\.\s*)?{quote}(?P<table>{any_name})(?!\w)", re.IGNORECASE)
