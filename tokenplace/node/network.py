"""Puts the halves of a peer that touch the network together. Start at `open_network`.

Imported only when the local API is up, because libp2p takes most of a second to load.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import trio

from tokenplace import defaults
from tokenplace.dht.bootstrap import BootstrapList, Joiner, JoinState, load_bootstrap
from tokenplace.dht.known_peers import KnownPeers, open_known_peers
from tokenplace.dht.messages import PeerAddrs
from tokenplace.engine.engine import open_engine
from tokenplace.models.names import ModelNames
from tokenplace.models.store import ModelStore
from tokenplace.models.table import TableFile
from tokenplace.node.addresses import Reach, reach_of
from tokenplace.node.asking import Asking, open_asking
from tokenplace.node.donating import Donations
from tokenplace.node.donation import Donation, DonationState
from tokenplace.node.node import LateRoutes, Node
from tokenplace.node.proving import ReachPolicy
from tokenplace.node.serving import open_serving
from tokenplace.node.trust_file import TrustFile
from tokenplace.peer.identity import Identity, load_or_create_identity, throwaway_identity
from tokenplace.router.routes import NetworkRoutes
from tokenplace.settings import Settings

IDENTITY_FILE = "identity.key"
_COMING = (DonationState.WAITING, DonationState.HASHING, DonationState.LOADING)


async def open_network(
    node: Node,
    table: TableFile,
    late_routes: LateRoutes,
    stack: AsyncExitStack,
    nursery: trio.Nursery,
    say: Callable[[str], None],
) -> None:
    """Open the serving half if others shall reach this peer, the asking half if it has an API."""
    settings = node.settings
    bootstrap = load_bootstrap(settings.bootstrap, settings.home)
    donations = node.all_donations = Donations(
        [*map(Donation, settings.donate)], say, open_engine=node.open_engine or open_engine
    )
    allow_private = may_dial_private(settings, bootstrap)
    known = await stack.enter_async_context(
        open_known_peers(
            settings.home,
            settings.network,
            allow_private=allow_private,
            from_scratch=bootstrap.starts_network,
            say=say,
        )
    )
    asker = throwaway_identity()
    if settings.is_serving:
        identity = load_or_create_identity(settings.home / IDENTITY_FILE)
        node.serving = await stack.enter_async_context(
            open_serving(
                settings.network,
                identity,
                settings.listen or (defaults.LISTEN_ADDR,),
                bootstrap,
                known,
                donations,
                reach_policy(settings, bootstrap, identity.peer_id, asker.peer_id),
                say,
                allow_private=allow_private,
            )
        )
        for addr in node.serving.host.addrs():
            say(f"listening on {addr}")
    if settings.has_api:
        node.asking = await _open_asking_half(node, asker, stack, bootstrap, known, allow_private)
        node.routes = NetworkRoutes(
            lambda: ModelNames(table.read()),
            donations.own_models,
            node.asking.finder,
            node.asking.open_donor,
            trust=TrustFile(settings.home).read,
            why_nobody=lambda: why_nobody(node),
            now=time.time,
        )
        late_routes.arrive(node.routes)
    store = ModelStore(settings.models_dir, table)
    if settings.donate:
        nursery.start_soon(donations.run, settings, store)
    if node.joiner is not None:
        nursery.start_soon(_say_joined, node.joiner, say)


async def _open_asking_half(
    node: Node,
    asker: Identity,
    stack: AsyncExitStack,
    bootstrap: BootstrapList,
    known: KnownPeers,
    allow_private: bool,
) -> Asking:
    """The asking half also joins through this peer's own serving half: who calls there is known
    here.
    """
    own_peers: frozenset[str] = frozenset()
    if node.serving is not None:
        host = node.serving.host
        own_peers = frozenset({host.peer_id})
        own = PeerAddrs(host.peer_id, tuple(a.partition("/p2p/")[0] for a in host.addrs()))
        bootstrap = BootstrapList((*bootstrap.peers, own), bootstrap.source)
    return await stack.enter_async_context(
        open_asking(
            node.settings.network,
            asker,
            bootstrap,
            known,
            allow_private=allow_private,
            own_peers=own_peers,
        )
    )


def may_dial_private(settings: Settings, bootstrap: BootstrapList) -> bool:
    """May addresses of private networks and this machine be dialled when strangers name them?

    Yes if the person said so, or joins through such an address, and then is in that network anyway.
    """
    return settings.allow_private or any(
        reach_of(addr) is not Reach.INTERNET for peer in bootstrap.peers for addr in peer.addrs
    )


def reach_policy(
    settings: Settings, bootstrap: BootstrapList, own_id: str, asker_id: str
) -> ReachPolicy:
    """What this peer takes for being reached (docs/protocol.md, section 12)."""
    others = frozenset(peer.peer_id for peer in bootstrap.peers) - {own_id}
    always = ""
    if settings.serve:
        always = "of --serve"
    elif len(others) < len(bootstrap.peers):
        always = f"{bootstrap.source} names it"
    return ReachPolicy(
        always=always,
        # Else a second peer on this machine would do for a network of strangers.
        does_local_count=not others or may_dial_private(settings, bootstrap),
        trusted=others,
        own_peers=frozenset({own_id, asker_id}),
        is_donating=bool(settings.donate),
    )


def why_nobody(node: Node) -> str:
    """Why a search found no donor, in words for the app's user."""
    loading = [d.name for d in node.donations if d.state in _COMING]
    if loading:
        return f"This peer is still loading {', '.join(loading)}."
    status = node.joiner.status() if node.joiner else None
    if status is None or status.state is JoinState.JOINED:
        return ""
    return f"This peer is {status.text}."


async def _say_joined(joiner: Joiner, say: Callable[[str], None]) -> None:
    if joiner.status().state is JoinState.ALONE:
        say(
            f"no peer known: {joiner.bootstrap.source} names none. Join through somebody with "
            "--bootstrap MULTIADDR (they print it with: tokenplace peer invite), or wait until "
            "somebody joins through this peer."
        )
    await joiner.wait_joined()
    say(joiner.status().text)
