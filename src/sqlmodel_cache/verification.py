"""What a comparison of the cache with the database has found: what `SQLModelCache.verify()` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """A cached row that is not what the database holds. It names no value.

    Attributes:
        pk: the primary key; None where `configure(hash_keys=True)` keeps it out of sight.
        columns: the attributes that differ; none where the whole row does.
        reason: "changed", "deleted" (the database has no such row), "inserted" (the cache says that there is none), or
            "class" (it is of another class now).
        age: seconds since the row was stored, and so the longest that it can have been wrong; None where the cache
            does not tell. It is the model's TTL less what is left of it, so that a TTL of a single call distorts it,
            and it may be up to a tenth of the TTL too long.
    """

    pk: tuple[Any, ...] | None
    columns: tuple[str, ...]
    reason: str
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """How many cached rows are what the database holds. `print()` it.

    Attributes:
        model: the model's name.
        checked: primary keys that were looked up.
        cached: those of them that a get would have hit.
        matched: those of the cached ones that are what the database holds.
        discrepancies: those that are not.
        undecided: those that were being written meanwhile, or of which the cache or the database did not tell.
        examples: the first discrepancies.
    """

    model: str
    checked: int
    cached: int
    matched: int
    discrepancies: int
    undecided: int
    examples: tuple[Discrepancy, ...] = ()

    @property
    def rate(self) -> float:
        """The share of discrepancies among the cached rows that were compared; 0 where none was."""
        compared = self.matched + self.discrepancies
        return self.discrepancies / compared if compared else 0.0

    @property
    def bound(self) -> float:
        """The rate that the model's cached rows have at most, with 95 % confidence; 1 where none was compared.

        It is the upper limit of Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case
        of the binomial", Biometrika 26 (1934), one-sided. Without a discrepancy that is nearly three divided by the
        number of rows compared: the rule of three (Hanley and Lippman-Hand, "If nothing goes wrong, is everything all
        right?", JAMA 249 (1983)).
        """
        return upper_bound(self.discrepancies, self.matched + self.discrepancies)

    @property
    def ok(self) -> bool:
        """Whether no discrepancy was found."""
        return self.discrepancies == 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON document's content; primary keys as text."""
        return {
            "model": self.model,
            "checked": self.checked,
            "cached": self.cached,
            "matched": self.matched,
            "discrepancies": self.discrepancies,
            "undecided": self.undecided,
            "rate": self.rate,
            "bound": self.bound,
            "confidence": CONFIDENCE,
            "examples": [
                {
                    "pk": None if each.pk is None else [str(part) for part in each.pk],
                    "columns": list(each.columns),
                    "reason": each.reason,
                    "age_seconds": each.age,
                }
                for each in self.examples
            ],
        }

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.discrepancies} of {self.matched + self.discrepancies} cached rows differ from the "
            f"database; at most {self.bound:.3%} do (95 %)",
            f"  looked up    {self.checked}, of which {self.cached} were cached",
        ]
        if self.undecided:
            lines.append(f"  undecided    {self.undecided}: being written, or the cache did not answer")
        return "\n".join(lines + [f"  {_told(each)}" for each in self.examples])


def _told(each: Discrepancy) -> str:
    row = "a row" if each.pk is None else f"row {', '.join(map(str, each.pk))}"
    what = f"{each.reason}: {', '.join(each.columns)}" if each.columns else each.reason
    age = "" if each.age is None else f"; stored at most {each.age:.0f} s ago"
    return f"{row:<12} {what}{age}"


def upper_bound(found: int, compared: int) -> float:
    """Return the probability p at which at most `found` of `compared` would be found one time in twenty."""
    if found >= compared:
        return 1.0
    if found == 0:
        return float(1 - (1 - CONFIDENCE) ** (1 / compared))
    low, high = found / compared, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(found, compared, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _at_most(found: int, compared: int, p: float) -> float:
    """Return the binomial distribution's probability of at most so many; `lgamma` keeps its terms from overflowing."""
    if p >= 1.0:
        return 0.0
    logs = (
        math.lgamma(compared + 1)
        - math.lgamma(each + 1)
        - math.lgamma(compared - each + 1)
        + each * math.log(p)
        + (compared - each) * math.log1p(-p)
        for each in range(found + 1)
    )
    return math.fsum(map(math.exp, logs))
