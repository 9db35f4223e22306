"""Peers that this one has met, remembered over restarts. Start at `open_known_peers`.

With them a peer finds back when every bootstrap peer is gone. The file is a cache: whatever is
wrong with it, the peer starts without it and writes it anew. It says whom this peer met, never
which models were looked for.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from tokenplace import defaults
from tokenplace.dht.addresses import usable_addrs
from tokenplace.dht.bootstrap import is_peer_id
from tokenplace.dht.finder import Finder
from tokenplace.dht.kad import Kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.models.files import write_atomically
from tokenplace.peer.background import open_background

log = logging.getLogger(__name__)

FILE_NAME: Final = "known_peers.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class _Known:
    addrs: tuple[str, ...]
    seen_at: float


class KnownPeers:
    """The latest peers met, at most `MAX_KNOWN_PEERS`. Pure; times are unix seconds."""

    def __init__(self, network: str, *, allow_private: bool) -> None:
        """allow_private: whether peers are told that have private addresses only."""
        self._network = network
        self._allow_private = allow_private
        self._own_peers: set[str] = set()
        self._known: dict[str, _Known] = {}
        self.is_changed = False

    def leave_out(self, own_peer: str) -> None:
        """Neither note nor tell this peer: it is this very one."""
        self._own_peers.add(own_peer)

    def note(self, peers: Iterable[PeerAddrs], now: float) -> None:
        """These peers were met now, at these addresses; what is known from later counts more."""
        for peer in peers:
            addrs = usable_addrs(peer.addrs, peer.peer_id, allow_private=True)
            if not addrs or peer.peer_id in self._own_peers:
                continue
            old = self._known.get(peer.peer_id)
            if old is not None and now < old.seen_at:
                continue
            is_news = old is None or set(old.addrs) != set(addrs)
            # That a peer is still there is written down once an hour: the file would never rest.
            if old is None or is_news or now - old.seen_at >= defaults.KNOWN_PEER_RENEW_S:
                self._known[peer.peer_id] = _Known(addrs, now)
                self.is_changed = True
        while len(self._known) > defaults.MAX_KNOWN_PEERS:
            del self._known[min(self._known, key=lambda id: self._known[id].seen_at)]

    def peers(self) -> list[PeerAddrs]:
        """Those that may be dialled, the one met last first."""
        newest_first = sorted(self._known.items(), key=lambda item: -item[1].seen_at)
        told = (
            PeerAddrs(
                peer_id, usable_addrs(known.addrs, peer_id, allow_private=self._allow_private)
            )
            for peer_id, known in newest_first
            if peer_id not in self._own_peers
        )
        return [peer for peer in told if peer.addrs]

    # ------------------------------------------------------------ the file

    def encode(self) -> bytes:
        """The file's content."""
        peers = [
            {"peer": peer_id, "addrs": known.addrs, "seen_at": int(known.seen_at)}
            for peer_id, known in sorted(self._known.items(), key=lambda item: -item[1].seen_at)
        ]
        content = {"version": _VERSION, "network": self._network, "peers": peers}
        return json.dumps(content, indent=1).encode() + b"\n"

    def decode(self, data: bytes, now: float) -> None:
        """Take in a file's content; of another network's or version's nothing.

        Raises `ValueError` if it is no such file; entries that are damaged are left out.
        """
        try:
            content = json.loads(data)
        except RecursionError:
            raise ValueError("nested too deep") from None
        if not isinstance(content, dict) or not isinstance(content.get("peers"), list):
            raise ValueError("not a list of peers")
        if (content.get("version"), content.get("network")) != (_VERSION, self._network):
            return
        for entry in content["peers"][: defaults.MAX_KNOWN_PEERS]:
            if (peer := _peer_of(entry)) is not None:
                self._known[peer.peer_id] = _Known(peer.addrs, min(entry["seen_at"], now))


def _peer_of(entry: Any) -> PeerAddrs | None:
    if not isinstance(entry, dict):
        return None
    peer_id, addrs, seen_at = entry.get("peer"), entry.get("addrs"), entry.get("seen_at")
    if not isinstance(peer_id, str) or not is_peer_id(peer_id) or not isinstance(addrs, list):
        return None
    if not isinstance(seen_at, int | float) or not 0 <= seen_at < math.inf:
        return None
    texts = [addr for addr in addrs if isinstance(addr, str)]
    usable = usable_addrs(texts, peer_id, allow_private=True)
    return PeerAddrs(peer_id, usable) if usable else None


# ---------------------------------------------------------------- keeping it


@asynccontextmanager
async def open_known_peers(
    home: Path,
    network: str,
    *,
    allow_private: bool,
    from_scratch: bool,
    say: Callable[[str], None],
    now: Callable[[], float] = time.time,
) -> AsyncIterator[KnownPeers]:
    """The peers remembered in `home`; written there while the block runs, and when it exits.

    from_scratch: whether what is in the file is left aside. say: called with a line if the file
    could not be used. now: unix seconds.
    """
    path = home / FILE_NAME
    known = KnownPeers(network, allow_private=allow_private)
    try:
        if not from_scratch:
            _read(known, path, now())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        say(f"{path} cannot be used ({reason}): it is written anew.")
    async with open_background() as nursery:
        nursery.start_soon(_write_forever, known, path)
        try:
            yield known
        finally:
            _write(known, path)


def _read(known: KnownPeers, path: Path, now: float) -> None:
    try:
        with path.open("rb") as file:
            data = file.read(defaults.MAX_KNOWN_PEERS_BYTES + 1)
    except FileNotFoundError:
        return
    if len(data) > defaults.MAX_KNOWN_PEERS_BYTES:
        raise ValueError("too large")
    known.decode(data, now)


async def _write_forever(known: KnownPeers, path: Path) -> None:
    while True:
        await trio.sleep(defaults.KNOWN_PEERS_WRITE_S)
        # In a thread: a disk may take its time. Nobody else writes until it is done.
        await trio.to_thread.run_sync(_write, known, path)


def _write(known: KnownPeers, path: Path) -> None:
    if not known.is_changed:
        return
    known.is_changed = False
    try:
        write_atomically(path, known.encode(), mode=0o600)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)


@asynccontextmanager
async def open_remembering(
    known: KnownPeers, kad: Kad, finder: Finder, now: Callable[[], float] = time.time
) -> AsyncIterator[None]:
    """Note in `known` whom `kad` and `finder` have talked to, until the block exits."""

    def note() -> None:
        known.note(kad.servers(), now())
        for donor in finder.met():
            # When it spoke itself; it may have left since, and come back.
            known.note([PeerAddrs(donor.peer_id, donor.addrs)], donor.live_received_at or 0.0)

    async def note_forever() -> None:
        while True:
            await trio.sleep(defaults.KNOWN_PEERS_NOTE_S)
            note()

    async with open_background() as nursery:
        nursery.start_soon(note_forever)
        try:
            yield
        finally:
            note()
