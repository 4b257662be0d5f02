"""The corpus is what it says it is."""

from __future__ import annotations

from writes.corpus import ENTRIES


def test_corpus_is_large() -> None:
    """At least 200 different writes, each with a name of its own."""
    assert len({(entry.family, entry.name) for entry in ENTRIES}) >= 200
    assert len({str(entry) for entry in ENTRIES}) >= 600
