"""How far every path of the library is from its floor; `python -m benchmarks` prints the table."""
