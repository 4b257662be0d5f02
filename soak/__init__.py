"""A soak of the consistency promise: `python -m soak --seconds 600`.

Several processes write and read the same rows through the library, on a real PostgreSQL and a real Redis, while delays
and faults are injected. Every read is judged by what had been committed when it began. See `ledger.py` for the rule.
"""
