"""`python -m cuvee`."""

from __future__ import annotations

from cuvee.cli import main

if __name__ == "__main__":
    main()
