"""`tokenplace up`: run a peer in the foreground until a signal ends it."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import trio

from tokenplace.cli.models import ensure_model
from tokenplace.cli.output import fail, say
from tokenplace.cli.stopping import until_signal
from tokenplace.node.node import open_node
from tokenplace.settings import Settings

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
EOF_CHUNK_BYTES: Final = 1024


def run_up(settings: Settings, *, may_fetch: bool, until_eof: bool) -> None:
    """Run until SIGINT or SIGTERM, or the end of stdin if `until_eof`; a second signal ends at
    once.
    """
    level = os.environ.get("TOKENPLACE_LOG", "WARNING").upper()
    if level not in LOG_LEVELS:
        fail(f"TOKENPLACE_LOG={level} is no log level", f"choose one of {', '.join(LOG_LEVELS)}")
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings.check()
    for model in settings.donate:
        ensure_model(settings.home, settings.models_dir, model, may_fetch=may_fetch)
    trio.run(_run, settings, until_eof)


async def _run(settings: Settings, until_eof: bool) -> None:
    async with until_signal() as stopping, open_node(settings, say) as node:
        with stopping.only_this():
            if until_eof:
                await _wait_for_eof()
            else:
                await trio.sleep_forever()
        await node.stop()


async def _wait_for_eof() -> None:
    """Return when whoever started this process is gone: its end of our stdin closes with it."""
    while await trio.to_thread.run_sync(
        os.read, sys.stdin.fileno(), EOF_CHUNK_BYTES, abandon_on_cancel=True
    ):
        pass
