"""One model of the zoo: how a row of it is made, got and changed, and what a get of it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A model and a row of it.

    Args:
        model: the class that is got.
        ident: the primary key that is got.
        rows: makes the objects that are in the database.
        change: an attribute and another value for it; None if nothing of it may be changed.
        kind: what the second get is: a "hit", or a "bypass" by rule, or a "miss" because the row cannot be stored.
        name: of the case, where the model's is not enough.
    """

    model: Any
    ident: Any
    rows: Callable[[], list[Any]]
    change: tuple[str, Any] | None = None
    kind: str = "hit"
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.model.__name__
