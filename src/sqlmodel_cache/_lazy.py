"""Which lazy loads are gets: those by the primary key of a cached class, where the relationship or the class opted in.

`LazyLoads.load` stands around SQLAlchemy's own lazy load, which has found nothing in the identity map and is about to
send a SELECT. What a get may see and store is the reader's to decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import InstanceState, Mapper, RelationshipProperty, Session

from . import _sqlalchemy
from ._entities import Entities
from ._reading import Reader
from .config import config_of, flag

INFO = "cache"  # the key in a relationship's `info`


@dataclass(frozen=True, slots=True)
class Link:
    """A relationship whose lazy loads may be answered from the cache."""

    relationship: RelationshipProperty[Any]
    target: type
    _paths: dict[Mapper[Any], Any] = field(default_factory=dict)  # by the class of the object whose attribute it is

    def path(self, parent: Mapper[Any]) -> Any:
        """Return where the load begins, for later loads."""
        path = self._paths.get(parent)
        if path is None:
            path = self._paths[parent] = _sqlalchemy.path_of_lazy_load(parent, self.relationship)
        return path


class LazyLoads:
    """Answers lazy loads."""

    def __init__(self, entities: Entities, reader: Reader) -> None:
        self._entities = entities
        self._reader = reader
        self._links: dict[Any, Link | None] = {}  # by lazy loader, of one generation of `entities`
        self._generation = entities.generation

    def link(self, loader: Any) -> Link | None:
        """Return what a lazy loader may ask the cache, or None if it may not."""
        generation = self._entities.generation
        if self._generation != generation:
            self._links = {}
            self._generation = generation
        links = self._links
        try:
            return links[loader]
        except KeyError:
            link = links[loader] = link_of(loader, self._entities)
            return link

    def load(
        self,
        link: Link,
        load: Callable[[], Any],
        session: Session,
        state: InstanceState[Any],
        ident: list[Any],
        passive: Any,
        *options: Any,
    ) -> Any:
        """Return what `load()`, SQLAlchemy's own lazy load, would return, from the cache if that is safe."""
        if not _sqlalchemy.is_plain_load(state, passive, *options):
            return load()
        # The options of the statement that has loaded the object are those of its lazy loads, too.
        asked = {"options": state.load_options} if state.load_options else {}
        return self._reader.get(session, link.target, ident, asked, load, link.path(state.mapper))


def link_of(loader: Any, entities: Entities) -> Link | None:
    """Return what a lazy loader may ask the cache, or None if it may not.

    Raises:
        ConfigurationError: the relationship's `info["cache"]` is neither True nor False.
    """
    if not _sqlalchemy.is_look_up(loader):
        return None
    relationship = _sqlalchemy.relationship_of(loader)
    target: type = relationship.mapper.class_
    config = config_of(target)
    if config is None or entities.get(target) is None:
        return None
    asked = relationship.info.get(INFO)
    opted = config.many_to_one if asked is None else flag(f'{relationship}: info["{INFO}"]', asked)
    return Link(relationship, target) if opted else None


def links_of(mapper: Mapper[Any], entities: Entities) -> list[Link]:
    """Return the relationships of a class that may be answered from the cache when they are accessed."""
    links = [link_of(loader, entities) for loader in _sqlalchemy.lazy_loaders(mapper)]
    return [link for link in links if link is not None]
