"""The doors of the local API: TCP, and a Unix socket if wanted. Start at `open_doors`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio
from starlette.types import ASGIApp

from tokenplace.api_shim.access import Access, ApiKeys, parse_host, parse_origin
from tokenplace.api_shim.server import serve_api, serve_unix
from tokenplace.node.api_keys import read_api_keys
from tokenplace.settings import Settings


def access_of(settings: Settings) -> Access:
    """Who may call over TCP, as the user said. Raises `ConfigError`."""
    keys = () if settings.api_key_file is None else read_api_keys(settings.api_key_file)
    return Access(
        hosts=frozenset(map(parse_host, settings.api_allow_hosts)),
        origins=frozenset(map(parse_origin, settings.api_allow_origins)),
        keys=ApiKeys.of(keys),
    )


async def open_doors(
    app: ASGIApp, settings: Settings, nursery: trio.Nursery, say: Callable[[str], None]
) -> str:
    """Serve the app until the nursery is cancelled; the URL of the API on this machine.

    say: called with each line that a person at the terminal should see. Raises `ConfigError`.
    """
    serve = partial(serve_api, app, port=settings.api_port, address=settings.api_host)
    port: int = await nursery.start(serve)
    url = f"http://127.0.0.1:{port}/v1"
    say(f"API: {url}")
    say(f"page: http://127.0.0.1:{port}/")
    if settings.api_host is not None:
        say(f"API for other machines: {settings.api_host}, port {port}, not encrypted")
    if settings.api_socket is not None:
        await nursery.start(serve_unix, app, settings.api_socket)
        say(f"API: unix socket {settings.api_socket}")
    return url
