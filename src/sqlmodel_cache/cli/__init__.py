"""The command line: `sqlmodel-cache`. Needs the extra `cli`.

Each command is a module here. It parses, calls the library and prints; what is safe is decided below. A command more is
a module like `_stats.py`, and its name in `_commands.py`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command. Errors are a message on stderr and an exit code, `_app.ExitCode`."""
    try:
        from ._commands import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich"):
            raise
        sys.stderr.write("the command line needs typer and rich: pip install 'sqlmodel-cache[cli]'\n")
        sys.exit(2)
    app()
