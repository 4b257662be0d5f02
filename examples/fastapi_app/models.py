"""Heroes and teams."""

from sqlmodel import Field, Relationship, SQLModel

from sqlmodel_cache import CacheConfig


class Team(SQLModel, table=True):
    """Also found in the cache when a hero's `team` is loaded."""

    __cache_config__ = CacheConfig(ttl=600, many_to_one=True)

    id: int | None = Field(default=None, primary_key=True)
    name: str


class HeroBase(SQLModel):
    """What a client sends."""

    name: str
    team_id: int | None = Field(default=None, foreign_key="team.id")


class Hero(HeroBase, table=True):
    """Cached for ten minutes, unless somebody changes it."""

    __cache_config__ = CacheConfig(ttl=600)

    id: int | None = Field(default=None, primary_key=True)
    team: Team | None = Relationship()
