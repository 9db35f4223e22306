"""The models this peer gives: loads each in its own worker and offers it once it has generated.
Start at `Donations`.

A model that cannot be loaded does not stop the peer: its reason is in the status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import trio

from tokenplace.engine.engine import Engine, EngineSpec, open_engine
from tokenplace.errors import TokenplaceError, first_error
from tokenplace.generation import Generator
from tokenplace.models.store import ModelStore
from tokenplace.peer.adverts import DonorState, Load, OfferedModel
from tokenplace.router.routes import OwnModel

log = logging.getLogger(__name__)


class DonationState(StrEnum):
    """How far a donated model has come."""

    LOADING = "loading"
    OFFERED = "offered"
    FAILED = "failed"


@dataclass
class Donation:
    """One donated model and what has become of it."""

    name: str
    state: DonationState = DonationState.LOADING
    reason: str = ""
    engine: Engine | None = None

    @property
    def offered(self) -> OfferedModel | None:
        """What the advert says of it; None while it is not offered."""
        if self.state is not DonationState.OFFERED or self.engine is None:
            return None
        info = self.engine.info
        return OfferedModel(
            name=info.name,
            artifact=info.artifact,
            template=info.template,
            profile=info.profile,
            n_ctx=info.n_ctx,
            features=info.features,
        )


@dataclass
class Donations:
    """All donated models of this peer. is_finishing: it is about to stop, and says so."""

    all: list[Donation] = field(default_factory=list)
    say: Callable[[str], None] = log.info
    is_finishing: bool = False

    def offered(self) -> Sequence[OfferedModel]:
        """What is offered now, for the advert."""
        return [offered for d in self.all if (offered := d.offered)]

    def generators(self) -> Mapping[str, Generator]:
        """Engines by artifact, for the donor's side of the exchange."""
        return {d.engine.info.artifact: d.engine for d in self.all if d.offered and d.engine}

    def own_models(self) -> Sequence[OwnModel]:
        """The same, for this peer's own router."""
        return [
            OwnModel(offered, d.engine, d.engine.load.n_queued)
            for d in self.all
            if (offered := d.offered) and d.engine
        ]

    def load(self) -> Load:
        """How busy this donor is: its longest queue and its slowest speeds, so nobody is promised
        too much.
        """
        loads = [d.engine.load for d in self.all if d.offered and d.engine]
        return Load(
            state=DonorState.FINISHING if self.is_finishing else DonorState.ACCEPTING,
            queue=max((one.n_running + one.n_queued for one in loads), default=0),
            prefill_tps=min((one.prefill_tps for one in loads), default=0.0),
            decode_tps=min((one.decode_tps for one in loads), default=0.0),
        )

    async def serve(self, what: str, store: ModelStore, n_threads: int, n_ctx: int | None) -> None:
        """Load one model, a known name or the path of a GGUF file, and keep it until cancelled."""
        donation = Donation(what)
        self.all.append(donation)
        try:
            file = await store.verified(what)
            donation.name = file.name
            spec = EngineSpec(
                path=file.path,
                name=file.name,
                artifact=file.artifact,
                n_threads=n_threads,
                n_ctx=n_ctx,
            )
            async with open_engine(spec) as engine:
                donation.engine = engine
                donation.state = DonationState.OFFERED
                self.say(
                    f"donating {file.name}: context {engine.info.n_ctx}, "
                    f"{engine.load.decode_tps:.0f} tokens/s on {n_threads} "
                    f"thread{'' if n_threads == 1 else 's'}"
                )
                await trio.sleep_forever()
        except* TokenplaceError as group:
            error = first_error(group)
            donation.state = DonationState.FAILED
            donation.reason = str(error)
            self.say(f"{donation.name} is not offered: {error}")
        finally:
            donation.engine = None
