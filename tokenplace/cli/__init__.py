"""The command line. Start at `main`; the commands and their flags are in `app`."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `tokenplace` command.

    Every error of every command ends up here and becomes a line for the person: no traceback.
    """
    try:
        from tokenplace.cli.app import app

        app()
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        from tokenplace.cli.output import explain

        explain(error)
