"""A process that serves endless answers until a signal ends it; it prints its port."""

from __future__ import annotations

from functools import partial

import trio

from tests.api_shim.serving import FakeCatalog
from tests.api_shim.test_server import EndlessEngine
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.server import serve_api
from tokenplace.cli.stopping import until_signal


async def main() -> None:
    app = create_app(EndlessEngine(), FakeCatalog())
    async with until_signal(), trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve_api, app, port=0))
        print(port, flush=True)


if __name__ == "__main__":
    trio.run(main)
