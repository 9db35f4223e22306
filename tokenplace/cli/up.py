"""`tokenplace up`: run a peer in the foreground until a signal ends it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import trio

from tokenplace.cli.logs import set_up_logs
from tokenplace.cli.models import ensure_model
from tokenplace.cli.output import say
from tokenplace.cli.stopping import until_signal
from tokenplace.node.node import open_node
from tokenplace.settings import Settings

if TYPE_CHECKING:
    from tokenplace.node.loading import OpenEngine

EOF_CHUNK_BYTES: Final = 1024


def run_up(
    settings: Settings,
    *,
    may_fetch: bool,
    until_eof: bool,
    open_engine: OpenEngine | None = None,
) -> None:
    """Run until SIGINT or SIGTERM, or the end of stdin if `until_eof`; a second signal ends at
    once. open_engine: see `open_node`.
    """
    settings.check()
    set_up_logs(settings.log_format)
    for model in settings.donate:
        ensure_model(settings.home, settings.models_dir, model, may_fetch=may_fetch)
    trio.run(_run, settings, until_eof, open_engine)


async def _run(settings: Settings, until_eof: bool, open_engine: OpenEngine | None) -> None:
    async with until_signal() as stopping, open_node(settings, say, open_engine) as node:
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
