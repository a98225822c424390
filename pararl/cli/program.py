"""What all programs have on their command line, and how they are called."""

import argparse
import sys

from pararl import __version__

COMMAND = "pararl"
"""The console command, whose first word names a program."""


def program() -> str:
    """How the user called this program: ``pararl train``, or ``python pipelines/pararl.py``."""
    called = sys.argv[0]
    return called if called.startswith(f"{COMMAND} ") else f"python {called}" if called.endswith(".py") else "python pipelines/pararl.py"


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--help``, ``--version`` and the description as it stands."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=program(), description=description, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=version())
    return parser


def version() -> str:
    return f"{COMMAND} {__version__}"
