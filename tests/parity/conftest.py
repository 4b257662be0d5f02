"""Databases for the folder: one template with the whole zoo, copied for each run."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity import zoo_declarative, zoo_relations, zoo_sqlmodel
from parity.runner import Databases, template
from sqlalchemy import MetaData
from sqlalchemy.orm import Session

ZOO = (zoo_sqlmodel, zoo_declarative, zoo_relations)


@pytest.fixture(scope="session")
def zoo_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with every model of the zoo, and its rows."""
    metadata = MetaData()
    for zoo in ZOO:
        for table in zoo.Base.metadata.tables.values():
            table.to_metadata(metadata)

    def seed(session: Session) -> None:
        for zoo in ZOO:
            for case in zoo.CASES:
                session.add_all(case.rows())
                session.flush()

    return template(tmp_path_factory.mktemp("zoo") / "template.db", metadata, seed)


@pytest.fixture(scope="session")
def databases(zoo_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Copies of it."""
    return Databases(tmp_path_factory.mktemp("copies"), zoo_template)
