"""`python -m sqlmodel_cache.cli`."""

from . import main

if __name__ == "__main__":
    main()
