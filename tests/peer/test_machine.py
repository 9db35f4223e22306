"""A machine that sleeps, or moves to another network."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from tests.peer.hosts import can_echo, open_asking_host, open_echo_host, open_wire, wait_until
from tokenplace import defaults
from tokenplace.peer.machine import watch_machine
from tokenplace.peer.upstream_yamux import MendedYamux


@dataclass
class Machine:
    slept_s: float = 0.0
    addresses: list[str] = field(default_factory=lambda: ["192.168.1.7"])
    noticed: list[float] = field(default_factory=list)

    async def watch(self) -> None:
        await watch_machine(
            lambda: self.noticed.append(trio.current_time()),
            steady=trio.current_time,
            wall=lambda: 1_800_000_000 + trio.current_time() + self.slept_s,
            addresses=lambda: self.addresses,
        )


async def test_sleep_and_another_network_are_noticed_once_each(autojump_clock: MockClock) -> None:
    machine = Machine()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.watch)
        await trio.sleep(60)
        assert machine.noticed == [], "nothing has happened"
        machine.slept_s += 3600
        await trio.sleep(60)
        assert len(machine.noticed) == 1
        assert machine.noticed[0] <= 60 + defaults.MACHINE_CHECK_S
        machine.addresses = ["10.0.0.3"]
        await trio.sleep(60)
        assert len(machine.noticed) == 2
        assert machine.noticed[1] <= 120 + defaults.INTERFACES_CHECK_S + defaults.MACHINE_CHECK_S
        machine.slept_s -= 3600  # a clock set back is no sleep
        await trio.sleep(60)
        assert len(machine.noticed) == 2
        nursery.cancel_scope.cancel()


async def test_after_a_sleep_a_dead_connection_is_found_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "KEEPALIVE_INTERVAL_S", 0.5)
    monkeypatch.setattr(defaults, "KEEPALIVE_TIMEOUT_S", 0.5)
    asked: list[MendedYamux] = []
    ping = MendedYamux._ping

    async def note(muxed: MendedYamux) -> None:
        asked.append(muxed)
        await ping(muxed)

    monkeypatch.setattr(MendedYamux, "_ping", note)
    async with (
        open_echo_host() as host,
        open_asking_host() as asker,
        open_wire(host.addrs()[0]) as (wire, addr),
    ):
        assert await can_echo(asker, host.peer_id, [addr])
        monkeypatch.setattr(defaults, "KEEPALIVE_INTERVAL_S", 1000)
        await trio.sleep(1.0)  # its next look is far away now
        asked.clear()
        asker._swarm.doubt()
        await wait_until(lambda: asked)
        assert asker.is_connected(host.peer_id), "an answer came"
        asked.clear()
        monkeypatch.setattr(defaults, "KEEPALIVE_INTERVAL_S", 0)
        wire.freeze()
        asker._swarm.doubt()
        await wait_until(lambda: not asker.is_connected(host.peer_id))
        assert asked
