"""Builds a running peer from settings. Start at `open_node`.

The local API is up before anything slow happens: importing libp2p, joining and loading models go on
behind it, and a request that comes too early waits a little or is told why not.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import trio

from tokenplace import __version__
from tokenplace.api_shim.app import create_app
from tokenplace.api_shim.server import serve_unix
from tokenplace.errors import SearchIncomplete, TokenplaceError
from tokenplace.models.names import ModelNames
from tokenplace.models.table import TableFile
from tokenplace.node.catalog import NetworkCatalog
from tokenplace.node.control import create_control_app
from tokenplace.node.doors import access_of, open_doors
from tokenplace.node.home import open_home
from tokenplace.node.status import status_of
from tokenplace.node.trust_file import TrustFile
from tokenplace.router.demand import Demand
from tokenplace.router.journal import Journal, Recorded
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route, Routes
from tokenplace.router.router import Router
from tokenplace.router.stoppable import Stoppable
from tokenplace.settings import Settings

if TYPE_CHECKING:
    # These import libp2p or llama.cpp, which takes most of a second: `open_node` loads them when
    # the API is up.
    from tokenplace.dht.bootstrap import Joiner
    from tokenplace.node.asking import Asking
    from tokenplace.node.donating import Donations
    from tokenplace.node.donation import Donation
    from tokenplace.node.loading import OpenEngine
    from tokenplace.node.serving import Serving
    from tokenplace.router.routes import NetworkRoutes

# An app may ask in the first second of a peer's life: importing libp2p and joining take about that.
START_WAIT_S: Final = 5.0


@dataclass
class Node:
    """A running peer, for its status. apps: what answers the local API's. open_engine: runs the
    donated models; None: llama.cpp does.
    """

    settings: Settings
    started_at: float
    open_engine: OpenEngine | None = None
    api_url: str = ""
    asking: Asking | None = None
    serving: Serving | None = None
    routes: NetworkRoutes | None = None
    router: Router | None = None
    apps: Stoppable | None = None
    journal: Journal = field(default_factory=Journal)
    version: str = __version__
    pid: int = field(default_factory=os.getpid)
    all_donations: Donations | None = None

    @property
    def donations(self) -> Sequence[Donation]:
        """The models donated here, loading and failed ones too."""
        return self.all_donations.all if self.all_donations else ()

    @property
    def joiner(self) -> Joiner | None:
        """Who knows how joining goes: of a peer that serves, its serving half, because the asking
        half joins through that one too.
        """
        half = self.serving or self.asking
        return half.joiner if half else None

    async def stop(self) -> None:
        """Begin nothing new, say so, and let the answers that run come to their end: those that
        this peer gives and those that its apps wait for (`Running.finish`). Meanwhile it leaves the
        DHT, and those connected are told.

        To be awaited before `open_node`'s block is left, which cuts whatever still runs.
        """
        if self.all_donations is not None:
            self.all_donations.is_finishing = True
        async with trio.open_nursery() as nursery:
            if self.serving is not None:
                nursery.start_soon(self.serving.donor.finish)
                nursery.start_soon(self.serving.leave)
            if self.apps is not None:
                nursery.start_soon(self.apps.finish)


class LateRoutes:
    """Routes for the router before there are any: waits for the real ones, not for long."""

    def __init__(self) -> None:
        self._routes: Routes | None = None
        self._are_there = trio.Event()

    def arrive(self, routes: Routes) -> None:
        """From now on, use these."""
        self._routes = routes
        self._are_there.set()

    async def find(
        self,
        model: str,
        demand: Demand,
        *,
        within_s: float = math.inf,
        besides: frozenset[str] = frozenset(),
    ) -> Sequence[Route]:
        """See `router.Routes`."""
        ends_at = trio.current_time() + within_s
        with trio.move_on_after(min(START_WAIT_S, within_s)):
            await self._are_there.wait()
        if self._routes is None:
            raise SearchIncomplete("This peer is still starting.", retry_after_s=START_WAIT_S)
        left_s = max(ends_at - trio.current_time(), 0.0)
        return await self._routes.find(model, demand, within_s=left_s, besides=besides)

    def failed(self, candidate: Candidate, error: TokenplaceError) -> None:
        """See `router.Routes`."""
        if self._routes is not None:
            self._routes.failed(candidate, error)


@asynccontextmanager
async def open_node(
    settings: Settings, say: Callable[[str], None], open_engine: OpenEngine | None = None
) -> AsyncIterator[Node]:
    """Run a peer until the block exits. Raises `ConfigError` for what cannot work; errors of a
    running peer leave as an `ExceptionGroup`.

    say: called with each line that a person at the terminal should see. open_engine: runs the
    donated models, instead of llama.cpp in a process of its own.
    """
    settings.check()
    node = Node(settings, time.time(), open_engine)
    async with AsyncExitStack() as stack:
        stack.enter_context(open_home(settings.home, settings.control_socket))
        table = TableFile(settings.home)
        table.read()  # a damaged file is said now, not at the first request
        TrustFile(settings.home).read()
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        routes = await _open_api(node, table, nursery, say)
        control_app = create_control_app(partial(_status, node))
        await nursery.start(serve_unix, control_app, settings.control_socket)
        # In a thread, so that the API answers meanwhile.
        network = await trio.to_thread.run_sync(import_module, "tokenplace.node.network")
        await network.open_network(node, table, routes, stack, nursery, say)
        yield node
        if node.serving is not None:
            await node.serving.withdraw()
        nursery.cancel_scope.cancel()  # all at once: each part takes its time to close


async def _open_api(
    node: Node,
    table: TableFile,
    nursery: trio.Nursery,
    say: Callable[[str], None],
) -> LateRoutes:
    """Serve the local API, before there is a network behind it."""
    routes = LateRoutes()
    if not node.settings.has_api:
        return routes
    node.router = Router(routes, wall_clock=time.time, dice=random.Random(), journal=node.journal)
    catalog = NetworkCatalog(
        lambda: ModelNames(table.read()),
        lambda: node.routes.offered_now() if node.routes else (),
        created=int(node.started_at),
    )
    node.apps = Stoppable(node.router)
    recorded = Recorded(node.apps, node.journal, time.time)
    app = create_app(
        recorded,
        catalog,
        embedder=recorded,
        journal=node.journal,
        access=access_of(node.settings),
    )
    node.api_url = await open_doors(app, node.settings, nursery, say)
    return routes


def _status(node: Node) -> dict[str, Any]:
    return status_of(node, time.time())
