"""What `sqlmodel-cache verify app.models:Hero --sample 10000` prints, and its exit code; it knows no command line."""

from __future__ import annotations

import json

from .configure import AsyncBind, Bind, SQLModelCache

RIGHT, WRONG = 0, 1  # exit codes: no discrepancy was found, or some were


def verify(model: type, bind: Bind | AsyncBind, sample: int = 10_000, *, as_json: bool = False) -> tuple[str, int]:
    """Return the text and the exit code of a verification, with the library configured as the application does it.

    An async engine's is called in a greenlet. Raises what `SQLModelCache.verify` raises.
    """
    found = SQLModelCache.verify(model, bind, sample=sample)
    text = json.dumps(found.as_dict(), indent=2) if as_json else str(found)
    return text, RIGHT if found.ok else WRONG
