"""The application: its exit codes, how errors become one line, and what is printed where."""

from __future__ import annotations

import errno
import json
from enum import IntEnum
from typing import Any

import typer
from redis import exceptions
from rich.console import Console
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from typer.core import TyperGroup

from ..errors import CacheError, ConfigurationError, FollowerError, InvalidationError, TransportError

out = Console(soft_wrap=True, highlight=False)
err = Console(soft_wrap=True, highlight=False, stderr=True)


class ExitCode(IntEnum):
    """What scripts may rely on."""

    OK = 0
    FINDING = 1  # it ran, and what it found is not as it should be
    USAGE = 2  # the command, the configuration or the permissions are wrong
    UNREACHABLE = 3  # Redis or the database does not answer, or refuses what is asked of it
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends a command with one line on stderr."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        self.code = code
        super().__init__(message)


class _Commands(TyperGroup):
    """Lets no error of input, of the configuration or of a server become a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # typer's releases do not agree upon its exit code
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except Exception as error:
            told = explained(error)
            if told is None:
                raise
            message, code = told
            err.print(message, markup=False)
            raise typer.Exit(code) from None


app = typer.Typer(
    cls=_Commands, help="The second-level cache of SQLModel.", no_args_is_help=True, pretty_exceptions_enable=False
)


def explained(error: Exception) -> tuple[str, ExitCode] | None:
    """Return the line for an error and the exit code, or None for one that is a bug."""
    match error:
        case CommandError():
            return str(error), error.code
        case FollowerError():
            return "\n".join(f"{what}\n    {remedy}" for what, remedy in error.problems), ExitCode.FINDING
        case ConfigurationError():
            return str(error), ExitCode.USAGE
        case InvalidationError() | TransportError():
            return f"Redis: {error}", ExitCode.UNREACHABLE
        case CacheError():
            return str(error), ExitCode.FINDING
        case exceptions.AuthenticationError() | exceptions.NoPermissionError():
            return f"Redis refuses: {error}", ExitCode.USAGE
        case exceptions.RedisError():
            return f"Redis: {error}", ExitCode.UNREACHABLE
        case DBAPIError():
            code = ExitCode.UNREACHABLE if error.connection_invalidated else ExitCode.USAGE
            return f"the database says: {first_line(error.orig or error)}", code
        case ArgumentError() | SQLAlchemyError():
            return first_line(error), ExitCode.USAGE
        case OSError() if error.errno == errno.ENOSPC:
            return f"what was to be written is lost: {error.strerror}", ExitCode.USAGE
        case _ if "DatabaseError" in (names := {each.__name__ for each in type(error).__mro__}):
            # A driver's own, where SQLAlchemy was not in between: they all have the names of PEP 249.
            code = ExitCode.UNREACHABLE if "OperationalError" in names else ExitCode.USAGE
            return f"the database says: {first_line(error)}", code
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def print_json(found: object) -> None:
    """Print one JSON document on stdout; what JSON does not know is its text."""
    typer.echo(json.dumps(found, indent=2, default=str))


def size(count: float | None) -> str:
    """Return a number of bytes for people."""
    if count is None:
        return "?"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
