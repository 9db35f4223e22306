"""The command line. Start at `main`; the commands and their flags are in `app`."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `tokenplace` command."""
    from tokenplace.cli.app import app

    app()
