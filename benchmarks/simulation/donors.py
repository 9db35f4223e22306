"""A donating peer of a simulated network. Start at `SimDonor.live`.

Everything above the host and beside the model is real: donor, admission, key ring, epochs, signed
statements and directory. A restart makes all of them anew but the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import cast

import trio

from benchmarks.simulation.liars import Liar, Lie
from benchmarks.simulation.network import UNIX_S, SimHost
from tokenplace.dht.announce import Announcer
from tokenplace.dht.directory import Directory
from tokenplace.dht.donors import DirectoryCache
from tokenplace.dht.news import Herald
from tokenplace.engine.fake import FakeEngine, Faults
from tokenplace.engine.fake_model import FakeModel
from tokenplace.peer.admission import Admission
from tokenplace.peer.adverts import DonorState, Load, OfferedModel
from tokenplace.peer.donor import Donor
from tokenplace.peer.host import PeerHost
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing

NETWORK = "simulation"


class Nature(StrEnum):
    """What a donor is like, apart from what befalls it."""

    HONEST = "honest"
    BOASTS = "boasts"  # advertises many times its speed
    ERRS = "errs"  # every request ends in an error
    STALLS = "stalls"  # says yes, and then only that it is alive
    CRASHES = "crashes"  # its worker dies in the middle of every answer
    LIES = "lies"  # says what must not be said; what, is drawn for each request


@dataclass(frozen=True, slots=True)
class DonorSpec:
    """A donor as a world is made with it.

    model: with its speed and slots. boast: what its advertised speeds are multiplied with.
    clock_s: how far its clock is wrong.
    """

    model: FakeModel
    nature: Nature = Nature.HONEST
    faults: Faults = field(default_factory=Faults)
    boast: float = 1.0
    clock_s: float = 0.0


class SimDonor:
    """One donating peer, which may crash and come back."""

    def __init__(
        self, host: SimHost, spec: DonorSpec, choose_lie: Callable[[], Lie | None]
    ) -> None:
        """choose_lie: what it does to the next answer if it is one that lies."""
        self.host = host
        self.spec = spec
        self.process: Process | None = None
        self.n_starts = 0
        self._choose_lie = choose_lie
        self._may_start = trio.Event()
        self._may_start.set()

    @property
    def name(self) -> str:
        """As the trace has it."""
        return self.host.name

    async def live(self) -> None:
        """Donate; after a crash, when it may start again. Runs until cancelled."""
        while True:
            await self._may_start.wait()
            self.n_starts += 1
            self.host.is_up = True
            async with trio.open_nursery() as nursery:
                self.process = Process(self.host, self.spec, nursery, self._choose_lie)
                await trio.sleep_forever()
            self.process = None

    def crash(self, *, is_clean: bool | None = None) -> None:
        """The process dies at once. is_clean: as of `SimNetwork.crash`."""
        if self.process is not None:
            self._may_start = trio.Event()
            self.host.network.crash(self.host, is_clean=is_clean)
            self.process.nursery.cancel_scope.cancel()

    async def leave(self) -> None:
        """Stop as a peer does that is told to: say so, let answers end, and go."""
        process = self.process
        if process is not None:
            await process.finish()
            if self.process is process:
                self.crash(is_clean=True)

    def restart(self) -> None:
        """Start it again, unless it runs."""
        self._may_start.set()


class Process:
    """What a start of a donor makes, and a crash ends."""

    def __init__(
        self,
        host: SimHost,
        spec: DonorSpec,
        nursery: trio.Nursery,
        choose_lie: Callable[[], Lie | None],
    ) -> None:
        self.nursery = nursery
        self.admission = Admission()
        self.engine = FakeEngine(spec.model, spec.faults)
        self._spec = spec
        self._is_finishing = False
        key_ring, epochs = KeyRing(first_id=0), Epochs()

        def now() -> float:
            return UNIX_S + spec.clock_s + trio.current_time()

        self.announcer = Announcer(
            identity=host.identity,
            network=NETWORK,
            addrs=host.addrs,
            models=lambda: (self._offered,),
            public_keys=lambda: key_ring.advertised(trio.current_time()),
            load=self._load,
            epoch=lambda: epochs.current(trio.current_time()),
            now=now,
        )
        self.donor = Donor(
            network=NETWORK,
            donor_id=host.identity.peer_id_bytes,
            key_ring=key_ring,
            epochs=epochs,
            models=lambda: {spec.model.artifact: self.engine},
            admission=self.admission,
            signed_keys=self.announcer.signed_keys,
            signed_live=self.announcer.signed_live,
            clock=trio.current_time,
        )
        real_host = cast(PeerHost, host)  # it has what these use of one
        self._herald = Herald(real_host, self.announcer)
        cache = DirectoryCache(
            NETWORK, allow_private=True, own_peers=frozenset({host.peer_id}), max_donors=1
        )
        self.directory = Directory(cache, host.peer_id, self.announcer.own, now)
        host.nursery = nursery
        self.directory.serve_on(real_host)
        handle = self.donor.handle
        if spec.nature is Nature.LIES:
            handle = Liar(
                donor_id=host.identity.peer_id_bytes,
                network=NETWORK,
                key_ring=key_ring,
                model=self.engine,
                honest=self.donor.handle,
                choose=choose_lie,
                dice=host.network.dice,
            ).handle
        host.set_stream_handler(GENERATE_PROTOCOL, handle)

    async def finish(self) -> None:
        """As `node.serving` has it: tell who is connected, and turn new requests away."""
        self._is_finishing = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._herald.tell)
            nursery.start_soon(self.donor.finish)

    @property
    def _offered(self) -> OfferedModel:
        info = self.engine.info
        return OfferedModel(
            info.name, info.artifact, info.template, info.profile, info.n_ctx, info.features
        )

    def _load(self) -> Load:
        load, boast = self.engine.load, self._spec.boast
        state = DonorState.FINISHING if self._is_finishing else DonorState.ACCEPTING
        return Load(state, load.n_ahead, load.prefill_tps * boast, load.decode_tps * boast)
