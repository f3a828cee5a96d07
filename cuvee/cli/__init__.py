"""The command line: one file a command; parsing and printing only."""

from cuvee.cli.app import main

__all__ = ["main"]
