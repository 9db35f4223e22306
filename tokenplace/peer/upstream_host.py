"""Upstream faults in the host: it speaks plaintext, and dies of what one stream raises.

Start at `build_host`. Mended against libp2p 0.8.1, each with a test
(tests/peer/test_upstream_host.py):

- **plaintext** `__init__.py:654` `new_host()` accepts `/plaintext/2.0.0` and `/secio`: knowing a
  peer's public key was enough to pass for it. Only Noise is offered here.
- **stream tasks** `network/connection/swarm_connection.py:309` What a stream's handler raised, or a
  message that is not UTF-8 in the choice of its protocol
  (`protocol_muxer/multiselect_communicator.py:58`), tore down the host.
- **wildcard** `host/basic_host.py:492` `/ip4/0.0.0.0` was told to other peers as it stands.
- **memory** `host/basic_host.py:1183` Everybody who connected was asked who he is, and could say so
  unasked; what he said stayed in the peer store after he had left (`:1385`), and askers' ids are
  throw-aways. Nothing here depends on it: nobody is asked, pushes are refused, the peer store holds
  this peer alone. Others' questions are answered.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Sequence

import trio
from libp2p.abc import INetStream
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr
from multiaddr.utils import get_network_addrs

from tokenplace import defaults
from tokenplace.peer.identity import Identity
from tokenplace.peer.upstream_swarm import MendedSwarm
from tokenplace.peer.upstream_yamux import MendedUpgrader

log = logging.getLogger(__name__)


class MendedHost(BasicHost):
    """A host on which a stream's fault stays that stream's, and that remembers nobody."""

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        try:
            await super()._swarm_stream_handler(net_stream)
        except (
            Exception
        ) as error:  # a stranger's bytes or a handler's bug: neither may reach the other streams
            log.debug("inbound stream: %s", type(error).__name__)
            with trio.move_on_after(defaults.RESET_TIMEOUT_S, shield=True):
                await net_stream.reset()

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Ask nobody who he is."""


def build_host(identity: Identity, max_connections: int) -> tuple[MendedHost, MendedSwarm]:
    """A host over TCP, Noise and yamux, and its swarm; nothing runs yet."""
    peer_id = ID.from_base58(identity.peer_id)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, identity.key_pair)
    noise = Noise(identity.key_pair, create_noise_key_pair().private_key)
    swarm = MendedSwarm(
        peer_id,
        peerstore,
        MendedUpgrader({NOISE: noise}),
        max_connections,
    )
    host = MendedHost(
        swarm, addrs_factory=expand_wildcards, disable_identify_address_discovery=True
    )
    host.remove_stream_handler(ID_PUSH)
    return host, swarm


def expand_wildcards(addrs: Iterable[Multiaddr]) -> list[Multiaddr]:
    """`addrs` with wildcards replaced: public addresses first, then private, loopback last."""
    texts = [text for addr in addrs for text in _expanded(str(addr), interface_ips())]
    return [Multiaddr(text) for text in sorted(dict.fromkeys(texts), key=_distance)]


def _expanded(addr: str, ips: Sequence[str]) -> list[str]:
    for wildcard, version in (("/ip4/0.0.0.0/", 4), ("/ip6/::/", 6)):
        if addr.startswith(wildcard):
            rest = addr.removeprefix(wildcard)
            return [
                f"/ip{version}/{ip}/{rest}"
                for ip in ips
                if ipaddress.ip_address(ip).version == version
            ]
    return [addr]


def interface_ips() -> list[str]:
    """Addresses of this machine: all but link-local ones, which mean nothing elsewhere."""
    return [*get_network_addrs(4), *get_network_addrs(6), "127.0.0.1", "::1"]


def _distance(addr: str) -> int:
    """0 for addresses that everybody may reach, 1 for private ones, 2 for this machine's own."""
    kind, value = addr.split("/")[1:3]
    if kind not in ("ip4", "ip6"):
        return 0
    ip = ipaddress.ip_address(value)
    return 2 if ip.is_loopback else int(ip.is_private)
