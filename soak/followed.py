"""The table that `soak.following` changes behind the library's back."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from sqlmodel_cache import CacheConfig


class Followed(SQLModel, table=True):
    """Rows that only raw SQL writes."""

    __tablename__ = "soak_followed"
    __cache_config__ = CacheConfig()
    id: int = Field(primary_key=True)
    version: int
