"""`tokenplace up`: run a peer in the foreground until a signal ends it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Final

import trio

from tokenplace.cli.models import ensure_model
from tokenplace.cli.output import fail, say
from tokenplace.errors import ConfigError, TokenplaceError, first_error
from tokenplace.node.node import open_node
from tokenplace.settings import Settings

# The node bounds each part of its shutdown; this is the whole, after which the process just ends.
STOP_TIMEOUT_S: Final = 4.5
EOF_CHUNK_BYTES: Final = 1024


def run_up(settings: Settings, *, may_fetch: bool, until_eof: bool) -> None:
    """Run until SIGINT or SIGTERM, or the end of stdin if `until_eof`; a second signal ends at
    once."""
    logging.basicConfig(
        level=os.environ.get("TOKENPLACE_LOG", "WARNING").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for model in settings.donate:
        ensure_model(settings.home, settings.models_dir, model, may_fetch=may_fetch)
    try:
        trio.run(_run, settings, until_eof)
    except* TokenplaceError as group:
        error = first_error(group)
        fail(str(error) if not isinstance(error, ConfigError) else error.detail, *hints_of(error))
    except* OSError as group:
        fail(f"the peer cannot go on: {first_error(group)}")


def hints_of(error: BaseException) -> tuple[str, ...]:
    """What to do about it, if the error knows."""
    return (error.hint,) if isinstance(error, TokenplaceError) else ()


async def _run(settings: Settings, until_eof: bool) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        if until_eof:
            nursery.start_soon(_cancel_on_eof, nursery.cancel_scope)
        async with open_node(settings, say):
            await trio.sleep_forever()


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if scope.cancel_called:
                os._exit(1)
            say("stopping ...")
            scope.cancel()
            # The rest of the shutdown is bounded part by part; this catches what nobody thought of.
            signal.setitimer(signal.ITIMER_REAL, STOP_TIMEOUT_S)


async def _cancel_on_eof(scope: trio.CancelScope) -> None:
    """End when whoever started this process is gone: its end of our stdin closes with it."""
    while await trio.to_thread.run_sync(
        os.read, sys.stdin.fileno(), EOF_CHUNK_BYTES, abandon_on_cancel=True
    ):
        pass
    scope.cancel()
