"""What text says of writes and transactions, as far as regular expressions can tell.

Text is not parsed: a verb that writes and the name of a table are enough, wherever they stand. A comment or a literal
that looks like a write invalidates in vain; one that hides a write would leave a row stale.
"""

from __future__ import annotations

import re
from functools import lru_cache

from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.sql.selectable import CompoundSelect, Select

# Three of the verbs are functions, too, when a parenthesis follows.
_VERB = re.compile(
    r"\b(?:(?:insert|replace|truncate)\b(?!\s*\()"
    r"|(?:update|delete|merge|copy|load|create|alter|drop|rename|call|do|exec|execute|refresh)\b)",
    re.IGNORECASE,
)
_LOCKS = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b", re.IGNORECASE)
_WHOLE_SCHEMA = re.compile(r"\b(?:drop|alter|owned)\s+(?:schema|by)\b", re.IGNORECASE)
_EMPTIES_REFERRERS = re.compile(r"\btruncate\b.*\bcascade\b", re.IGNORECASE | re.DOTALL)
_START = r"(?:^|;)(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_ENDS_TRANSACTION = re.compile(_START + r"(?:commit|end|prepare\s+transaction)\b", re.IGNORECASE | re.DOTALL)
_PREPARES = re.compile(_START + r"prepare\s+transaction\b", re.IGNORECASE | re.DOTALL)
_ISOLATES = re.compile(r"isolation|snapshot|read_uncommitted", re.IGNORECASE)
_ISOLATES_FOR_GOOD = re.compile(r"characteristics|default_transaction|\bsession\b|\bglobal\b", re.IGNORECASE)
_TEMPORARY = re.compile(r"\b(?:create|into)\b[^;]*\b(?:temp|temporary)\b", re.IGNORECASE)

# What else commits. On SQLite, a savepoint outside a transaction is a transaction, and its release a COMMIT.
_DDL_COMMITS = re.compile(
    _START + r"(?:create|alter|drop|truncate|rename|grant|revoke|begin|start|lock|unlock|set\s+autocommit)\b",
    re.IGNORECASE | re.DOTALL,
)
_IMPLICIT_COMMITS = {
    "mysql": _DDL_COMMITS,
    "mariadb": _DDL_COMMITS,
    "oracle": _DDL_COMMITS,
    "sqlite": re.compile(_START + r"release\b", re.IGNORECASE | re.DOTALL),
}


def verbs(sql: str) -> frozenset[str]:
    """Return the words of a statement that may write, in lower case."""
    return frozenset(verb.lower() for verb in _VERB.findall(_LOCKS.sub("", sql)))


def changes_schema(sql: str) -> bool:
    """Return whether a statement drops or renames tables by the name of their schema or owner."""
    return _WHOLE_SCHEMA.search(sql) is not None


def empties_referrers(sql: str) -> bool:
    """Return whether a statement is a TRUNCATE that empties the tables whose foreign keys refer to it, too."""
    return _EMPTIES_REFERRERS.search(sql) is not None


def is_text(context: DefaultExecutionContext) -> bool:
    """Return whether a statement is none of SQLAlchemy's queries: `text()`, `exec_driver_sql()`, DDL, savepoints."""
    compiled = context.compiled
    return compiled is None or not isinstance(compiled.statement, Select | CompoundSelect | Insert | Update | Delete)


@lru_cache(maxsize=1024)
def ends_transaction(sql: str, dialect: str) -> bool:
    """Return whether a statement in text commits what was written before it. It may say so in vain."""
    implicit = _IMPLICIT_COMMITS.get(dialect)
    return bool(_ENDS_TRANSACTION.search(sql) or (implicit is not None and implicit.search(sql)))


@lru_cache(maxsize=1024)
def prepares(sql: str) -> bool:
    """Return whether a statement in text leaves the COMMIT to somebody else."""
    return _PREPARES.search(sql) is not None


@lru_cache(maxsize=1024)
def isolates_for_good(sql: str) -> bool:
    """Return whether a statement that sets an isolation level may set it for later transactions, too."""
    return _ISOLATES_FOR_GOOD.search(sql) is not None


@lru_cache(maxsize=1024)
def makes_temporary(sql: str) -> bool:
    """Return whether a statement in text may make a temporary table."""
    return _TEMPORARY.search(sql) is not None


@lru_cache(maxsize=1024)
def isolates(sql: str) -> bool:
    """Return whether a statement in text sets an isolation level or a snapshot."""
    return _ISOLATES.search(sql) is not None
