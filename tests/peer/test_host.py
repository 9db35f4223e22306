from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import cast

import pytest
import trio
from libp2p.network.stream.exceptions import StreamReset
from libp2p.stream_muxer.yamux.yamux import Yamux

from tests.peer.hosts import (
    ECHO,
    LOOPBACK,
    can_echo,
    echo,
    open_asking_host,
    open_echo_host,
    port_of,
    receive_all,
    wait_until,
)
from tokenplace import defaults
from tokenplace.errors import ConfigError, ConnectFailed, NoDonorForModel
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import PeerStream

MAX_OUTBOUND_STREAMS = 256  # yamux's own limit for one connection


async def test_a_stream_carries_bytes_both_ways_and_ends() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())
        await stream.send_all(b"one ")
        assert await stream.receive_some(100) == b"one "
        await stream.send_all(b"two")
        await stream.send_eof()
        assert await receive_all(stream) == b"two"
        assert await stream.receive_some(1) == b""
        await stream.aclose()


async def test_both_sides_know_who_the_other_is() -> None:
    seen: list[tuple[str, str]] = []

    async def note(stream: PeerStream) -> None:
        seen.append((stream.peer_id, stream.remote_ip))

    async with open_echo_host() as host, open_asking_host() as asker:
        host.set_stream_handler("/test/note/1", note)
        stream = await asker.open_stream(host.peer_id, "/test/note/1", host.addrs())
        assert await receive_all(stream) == b""
        assert (stream.peer_id, stream.remote_ip) == (host.peer_id, "127.0.0.1")
        assert seen == [(asker.peer_id, "127.0.0.1")]


async def test_a_closed_stream_says_so() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        for end in ("aclose", "reset"):
            stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())
            await getattr(stream, end)()
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some(1)
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_eof()
            await stream.aclose()
            await stream.reset()


async def test_a_stream_closed_while_it_is_read_says_so() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.reset()


async def test_nothing_is_sent_after_eof() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())
        await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        await stream.aclose()


async def test_a_cancelled_reader_can_still_reset() -> None:
    was_reset = trio.Event()

    async def wait(stream: PeerStream) -> None:
        try:
            await stream.receive_some(1)
        except trio.BrokenResourceError:
            was_reset.set()

    async with open_echo_host() as host, open_asking_host() as asker:
        host.set_stream_handler("/test/wait/1", wait)
        stream = await asker.open_stream(host.peer_id, "/test/wait/1", host.addrs())
        with trio.move_on_after(0.05) as scope:
            try:
                await stream.receive_some(1)
            finally:
                await stream.reset()  # runs while being cancelled
        assert scope.cancelled_caught
        with trio.fail_after(5):
            await was_reset.wait()


async def test_an_unknown_protocol_fails_and_leaves_the_connection() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        with pytest.raises(ConnectFailed, match="/test/unknown/1"):
            await asker.open_stream(host.peer_id, "/test/unknown/1", host.addrs())
        assert await can_echo(asker, host.peer_id)


async def test_streams_of_one_peer_are_limited_and_of_all_together() -> None:
    async with (
        open_echo_host() as host,
        open_asking_host() as alice,
        open_asking_host() as bob,
    ):
        host.set_stream_handler(ECHO, echo, max_streams_per_peer=2, max_streams=3)
        streams = [await alice.open_stream(host.peer_id, ECHO, host.addrs()) for _ in range(2)]
        assert not await is_answered(alice, host)
        streams.append(await bob.open_stream(host.peer_id, ECHO, host.addrs()))
        assert not await is_answered(bob, host)
        for stream in streams:
            await stream.send_all(b"still here")
            assert await stream.receive_some(100) == b"still here"
        await streams[0].aclose()
        await wait_until(lambda: sum(info.n_streams for info in host.connections()) == 2)
        assert await can_echo(alice, host.peer_id)


async def is_answered(asker: PeerHost, host: PeerHost) -> bool:
    try:
        return await can_echo(asker, host.peer_id)
    except (ConnectFailed, trio.BrokenResourceError):
        return False


async def test_a_stream_whose_protocol_is_never_said_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "NEGOTIATE_TIMEOUT_S", 1.0)
    async with open_echo_host() as host, open_asking_host() as asker:
        await asker.connect(host.peer_id, host.addrs())
        [connection] = asker._swarm.get_connections()
        stream = await connection.new_stream()
        with trio.fail_after(5), suppress(StreamReset):
            while await stream.read(100):
                pass
        await wait_until(lambda: not any(info.n_streams for info in host.connections()))


async def test_a_removed_handler_answers_no_more() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        assert await can_echo(asker, host.peer_id, host.addrs())
        host.remove_stream_handler(ECHO)
        with pytest.raises(ConnectFailed):
            await asker.open_stream(host.peer_id, ECHO)


async def test_who_is_not_connected_and_has_no_address_cannot_be_reached() -> None:
    async with open_asking_host() as asker:
        with pytest.raises(ConnectFailed):
            await asker.open_stream(throwaway_identity().peer_id, ECHO)


@pytest.mark.parametrize("peer_id", ["", "ALICE", "0OIl", "12D3KooW"])
async def test_what_is_no_peer_id_cannot_be_reached(peer_id: str) -> None:
    async with open_asking_host() as asker:
        with pytest.raises(ConnectFailed):
            await asker.connect(peer_id, ["/ip4/127.0.0.1/tcp/1"])


async def test_connections_are_listed_on_both_sides() -> None:
    before = time.time()
    async with open_echo_host() as host, open_asking_host() as asker:
        stream = await asker.open_stream(host.peer_id, ECHO, host.addrs())
        [out], [inbound] = asker.connections(), host.connections()
        assert (out.peer_id, out.direction) == (host.peer_id, "out")
        assert (inbound.peer_id, inbound.direction) == (asker.peer_id, "in")
        assert out.remote_addr == host.addrs()[0].split("/p2p/")[0]
        assert inbound.remote_addr.startswith("/ip4/127.0.0.1/tcp/")
        assert before <= out.opened_at <= time.time()
        assert out.n_streams >= 1
        await stream.aclose()
        await asker.disconnect(host.peer_id)
        assert asker.connections() == []
        assert not asker.is_connected(host.peer_id)
        await wait_until(lambda: not host.connections())


async def test_a_dial_only_host_has_no_addresses() -> None:
    async with open_asking_host() as asker:
        assert asker.addrs() == []


async def test_a_cancelled_opening_leaves_no_stream_behind() -> None:
    async with open_echo_host() as host, open_asking_host() as asker:
        assert await can_echo(asker, host.peer_id, host.addrs())
        [connection] = asker._swarm.get_connections()
        free = cast(Yamux, connection.muxed_conn).stream_backlog_semaphore
        await wait_until(lambda: free.value == MAX_OUTBOUND_STREAMS)
        for n_steps in range(30):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(asker.open_stream, host.peer_id, ECHO)
                    for _ in range(n_steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        await wait_until(lambda: free.value == MAX_OUTBOUND_STREAMS)
        assert await can_echo(asker, host.peer_id)


async def test_who_waits_for_a_stream_is_told_that_the_host_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_opening = trio.Event()

    async def open_for_ever(*_: object) -> None:
        is_opening.set()
        await trio.sleep_forever()

    async def wait_for_a_stream(asker: PeerHost, peer_id: str) -> None:
        with trio.fail_after(20, shield=True), pytest.raises(ConnectFailed, match="closes"):
            await asker.open_stream(peer_id, ECHO)

    async with (
        open_echo_host() as host,
        trio.open_nursery() as nursery,
        open_asking_host() as asker,
    ):
        await asker.connect(host.peer_id, host.addrs())
        monkeypatch.setattr(asker.upstream, "new_stream", open_for_ever)
        nursery.start_soon(wait_for_a_stream, asker, host.peer_id)
        await is_opening.wait()


async def test_an_error_inside_the_block_leaves_it_bare() -> None:
    with pytest.raises(NoDonorForModel):
        async with open_echo_host():
            raise NoDonorForModel


async def test_a_port_in_use_is_named() -> None:
    async with open_echo_host() as host:
        addr = f"/ip4/127.0.0.1/tcp/{port_of(host.addrs()[0])}"
        with pytest.raises(ConfigError, match=addr):
            async with open_host(throwaway_identity(), listen=[addr]):
                pass


async def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77"):
        async with open_host(throwaway_identity(), listen=["/ip4/192.0.2.77/tcp/0"]):
            pass


@pytest.mark.parametrize(
    "addr", ["", "4010", "/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/4010/quic-v1", "/ip4/1/tcp/4010"]
)
async def test_what_cannot_be_listened_on_is_named(addr: str) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        async with open_host(throwaway_identity(), listen=[addr]):
            pass


async def test_several_hosts_with_one_port_each_share_a_process() -> None:
    async with open_echo_host([LOOPBACK, LOOPBACK.replace("127.0.0.1", "127.0.0.2")]) as host:
        ports = {port_of(addr) for addr in host.addrs()}
        assert len(host.addrs()) == 2
        async with open_asking_host() as asker:
            for addr in host.addrs():
                assert await can_echo(asker, host.peer_id, [addr])
                await asker.disconnect(host.peer_id)
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass
