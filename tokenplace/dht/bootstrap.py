"""How a peer gets into the network and stays there. Start at `Joiner`; `load_bootstrap` finds the
list of peers to ask.

Starting never waits for any of it: `Joiner.run` tries until somebody answers, and `status` says how
it goes.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Final

import base58
import trio

from tokenplace import defaults
from tokenplace.dht.kad import Kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.errors import ConfigError, TokenplaceError
from tokenplace.peer.host import PeerHost

FILE_NAME: Final = "bootstrap_nodes.txt"
_EXAMPLE: Final = "/ip4/203.0.113.7/tcp/4010/p2p/12D3KooW..."
_HINT: Final = (
    f"Write it as {_EXAMPLE}; `tokenplace peer invite` on the other machine prints the line."
)
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
# A peer id is a multihash: identity (0x00) of a public key of at most 42 bytes, or sha256 (0x12).
_IDENTITY_HASH: Final = 0x00
_SHA256: Final = 0x12


# ---------------------------------------------------------------- the list


@dataclass(frozen=True, slots=True)
class BootstrapList:
    """Peers to join through, and where they were named: "--bootstrap" or a file."""

    peers: tuple[PeerAddrs, ...]
    source: str

    @property
    def starts_network(self) -> bool:
        """Does a file of the user's own name nobody? Then nobody known from before is asked."""
        return not self.peers and self.source != FILE_NAME


def load_bootstrap(flags: Sequence[str], home: Path) -> BootstrapList:
    """The peers named by `flags`, else by the home's file, else by the packaged one.

    A file in the home counts even when it names nobody: that is how to start a network of one's
    own. Raises `ConfigError` naming file and line.
    """
    if flags:
        return BootstrapList(parse_addrs((addr, "--bootstrap") for addr in flags), "--bootstrap")
    own = home / FILE_NAME
    try:
        return BootstrapList(parse_bootstrap(own.read_text("utf-8"), str(own)), str(own))
    except FileNotFoundError:
        packaged = resources.files("tokenplace").joinpath(FILE_NAME).read_text("utf-8")
        return BootstrapList(parse_bootstrap(packaged, FILE_NAME), FILE_NAME)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{own}: cannot be read: {reason}.") from error


def parse_bootstrap(text: str, source: str) -> tuple[PeerAddrs, ...]:
    """The peers that a bootstrap file's text names. Raises `ConfigError` with `source` and line."""
    lines = ((line.partition("#")[0].strip(), n) for n, line in enumerate(text.splitlines(), 1))
    return parse_addrs((line, f"{source}:{n}") for line, n in lines if line)


def parse_addrs(placed: Iterable[tuple[str, str]]) -> tuple[PeerAddrs, ...]:
    """The peers of (multiaddr, where it stands) pairs, in order, each once with all its addresses.

    Raises `ConfigError` naming the place.
    """
    found: dict[str, dict[str, None]] = {}
    for addr, place in placed:
        peer_id, plain = parse_addr(addr, place)
        found.setdefault(peer_id, {})[plain] = None
    return tuple(PeerAddrs(peer_id, tuple(addrs)) for peer_id, addrs in found.items())


def parse_addr(addr: str, place: str) -> tuple[str, str]:
    """Peer id and dialable address of one multiaddr. Raises `ConfigError` naming `place`."""
    parts = addr.split("/")
    if "p2p" not in parts[:-1]:
        raise ConfigError(f"{place}: no /p2p/ peer id in {addr!r}.", hint=_HINT)
    if len(parts) != 7 or parts[0] or parts[3] != "tcp" or parts[5] != "p2p":
        raise ConfigError(f"{place}: {addr!r} is not an address that can be dialled.", hint=_HINT)
    _, kind, target, _, port, _, peer_id = parts
    if not _is_target(kind, target):
        raise ConfigError(f"{place}: {target!r} is not a valid {kind} address.", hint=_HINT)
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 1 << 16):
        raise ConfigError(f"{place}: {port!r} is not a TCP port.", hint=_HINT)
    if not is_peer_id(peer_id):
        raise ConfigError(f"{place}: {peer_id!r} is not a peer id.", hint=_HINT)
    return peer_id, f"/{kind}/{target}/tcp/{int(port)}"


def _is_target(kind: str, target: str) -> bool:
    if kind in ("dns", "dns4", "dns6"):
        return _HOST_NAME.fullmatch(target) is not None
    try:
        return f"ip{ipaddress.ip_address(target).version}" == kind
    except ValueError:
        return False


def is_peer_id(text: str) -> bool:
    """Is this a peer id in base58?"""
    try:
        raw = base58.b58decode(text)
    except ValueError:
        return False
    if len(raw) < 2 or raw[1] != len(raw) - 2:
        return False
    return raw[0] == _IDENTITY_HASH or (raw[0] == _SHA256 and raw[1] == 32)


# ---------------------------------------------------------------- joining


class JoinState(StrEnum):
    """Whether this peer is in the network."""

    JOINING = "joining"
    JOINED = "joined"
    ALONE = "alone"


@dataclass(frozen=True, slots=True)
class JoinStatus:
    """How joining goes, for a person. `reasons`: by peer id, why bootstrap peers failed."""

    state: JoinState
    text: str
    reasons: dict[str, str]


@dataclass
class Joiner:
    """Keeps a peer joined: while nobody is known in the DHT, bootstrap peers are asked again, and
    peers known from before beside them.

    Being called by others counts as well: the first peer of a network asks nobody and is joined by
    the second. remembered: peers known from before, as they are now, the one met last first.
    """

    host: PeerHost
    kad: Kad
    bootstrap: BootstrapList
    remembered: Callable[[], Sequence[PeerAddrs]] = tuple
    _reasons: dict[str, str] = field(default_factory=dict)
    _n_rounds: int = 0

    @property
    def peers(self) -> tuple[PeerAddrs, ...]:
        """The bootstrap peers, without this peer itself."""
        return tuple(peer for peer in self.bootstrap.peers if peer.peer_id != self.host.peer_id)

    @property
    def is_alone(self) -> bool:
        """Does this peer know nobody, nor anybody to ask?"""
        return not (self.kad.n_peers() or self.peers or self._others())

    def _others(self) -> list[PeerAddrs]:
        """Peers known from before that are no bootstrap peers, the one met last first."""
        left_out = {self.host.peer_id, *(peer.peer_id for peer in self.peers)}
        return [peer for peer in self.remembered() if peer.peer_id not in left_out]

    async def wait_joined(self) -> None:
        """Return as soon as this peer knows somebody in the DHT."""
        await self._wait_until_known(True)

    def status(self) -> JoinStatus:
        """The state of things, in words too."""
        n_known = self.kad.n_peers()
        if n_known:
            return JoinStatus(JoinState.JOINED, f"joined, {_counted(n_known)} known", {})
        source, n, n_others = self.bootstrap.source, len(self.peers), len(self._others())
        if not n and not n_others:
            text = f"alone: {source} names no other peer, and no serving peer has called yet"
            return JoinStatus(JoinState.ALONE, text, {})
        if not self._n_rounds:
            through = source if n else "peers known from before"
            return JoinStatus(JoinState.JOINING, f"joining through {through}", {})
        asked = [f"{_counted(n)} in {source}"] if n else []
        asked += [f"{_counted(n_others)} known from before"] if n_others else []
        text = f"joining: no answer yet from {' and '.join(asked)}"
        return JoinStatus(JoinState.JOINING, text, dict(self._reasons))

    async def run(self) -> None:
        """Join, and join again whenever everybody was lost. Runs until cancelled."""
        while True:
            pause_s = defaults.JOIN_RETRY_S
            while not self.kad.n_peers():
                await self._ask_all()
                # Jittered, so that a network's peers do not all return at once after an outage.
                with trio.move_on_after(pause_s * random.uniform(0.5, 1.5)):
                    await self.wait_joined()
                pause_s = min(pause_s * 2, defaults.JOIN_RETRY_MAX_S)
            await self._wait_until_known(False)

    async def _wait_until_known(self, is_known: bool) -> None:
        # Looked at, because the routing table tells nobody when it changes.
        while bool(self.kad.n_peers()) != is_known:  # noqa: ASYNC110
            await trio.sleep(defaults.JOIN_POLL_S)

    async def _ask_all(self) -> None:
        """One round: every bootstrap peer at once, so that a dead one holds up nobody.

        Beside them some of those known from before: half of them those met last.
        """
        others = self._others()
        n_newest = defaults.JOIN_REMEMBERED // 2
        older = others[n_newest:]
        drawn = random.sample(older, min(len(older), defaults.JOIN_REMEMBERED - n_newest))
        async with trio.open_nursery() as nursery:
            for group in (self.peers, (*others[:n_newest], *drawn)):
                limiter = trio.CapacityLimiter(defaults.JOIN_CONCURRENCY)
                for peer in group:
                    nursery.start_soon(self._ask, peer, limiter)
        self._n_rounds += 1

    async def _ask(self, peer: PeerAddrs, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                is_trusted = peer in self.peers
                await self.host.connect(peer.peer_id, peer.addrs, is_trusted=is_trusted)
                n_answered = await self.kad.join([(peer.peer_id, peer.addrs)])
            except TokenplaceError as error:
                reason = error.detail or error.user_text  # that it is no donor is no news
            else:
                reason = "" if n_answered else "It was reached, but does not answer in the DHT."
        self._reasons.pop(peer.peer_id, None)
        if reason and peer in self.peers:
            self._reasons[peer.peer_id] = reason


def _counted(n: int) -> str:
    return "1 peer" if n == 1 else f"{n} peers"
