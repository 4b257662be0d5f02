"""SQLModel's and SQLAlchemy's own test suites, with every mapped class cached: `python -m compat`."""
