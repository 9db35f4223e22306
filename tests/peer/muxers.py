"""What tests of the muxer share: its parts inside a host, handlers, and a hurried clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
import trio
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.yamux.yamux import (
    Yamux,
    YamuxStream,
)

from tests.peer.hosts import (
    receive_all,
)
from tokenplace.peer.net_stream import Libp2pStream
from tokenplace.peer.streams import PeerStream

IDLE = "/test/idle/1.0.0"


def muxer_of(swarm: Swarm) -> Yamux:
    [connection] = swarm.get_connections()
    return cast(Yamux, connection.muxed_conn)


def muxed_of(stream: PeerStream) -> YamuxStream:
    return cast(YamuxStream, cast(Libp2pStream, stream)._stream.muxed_stream)


@contextmanager
def hurry() -> Iterator[None]:
    """Have every wait with a limit end after 0.2 s, those inside libp2p too."""
    move_on_after = trio.move_on_after

    def hurried(seconds: float, *, shield: bool = False) -> trio.CancelScope:
        return move_on_after(min(seconds, 0.2), shield=shield)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(trio, "move_on_after", hurried)
        yield


async def read_nothing(_stream: object) -> None:
    await trio.sleep_forever()


async def receive_all_of(stream: PeerStream) -> None:
    await receive_all(stream)


async def reset_at_once(stream: PeerStream) -> None:
    await stream.receive_some(1)
    await stream.reset()
