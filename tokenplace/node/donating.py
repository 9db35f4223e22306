"""The models this peer gives. Start at `Donations.run`.

Each runs in its own worker, within the memory given for all (`memory.py`), loaded one after the
other (`loading.py`), and is offered once it has generated. A model that cannot be loaded does not
stop the peer: its reason is in the status.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from tokenplace.engine.engine import EngineSpec, open_engine
from tokenplace.errors import ConfigError, TokenplaceError
from tokenplace.generation import Event, GenerateRequest
from tokenplace.models.store import ModelStore
from tokenplace.node.donation import Donation, DonationState
from tokenplace.node.loading import Loader, OpenEngine
from tokenplace.node.memory import Need, machine_bytes, need_of, share_memory
from tokenplace.operations import CountRequest, Embeddings, EmbedRequest, ScoreRequest, Scores
from tokenplace.peer.adverts import DonorState, Load, OfferedModel
from tokenplace.router.routes import OwnModel
from tokenplace.settings import Settings

if TYPE_CHECKING:
    import trio.abc

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DonatedModel:
    """A donated model as an `Answerer`, whether it is in memory now or has to be loaded first."""

    donation: Donation
    loader: Loader

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Event]]:
        """See `Generator`. Entering waits while the model is loaded, and raises `DonorBusy` or
        `ModelNotOffered` when that takes too long or fails.
        """
        async with (
            self.loader.lease(self.donation) as engine,
            engine.generate(request) as events,
        ):
            yield events

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """See `Operator`. Waits and raises as `generate`; so do `count` and `score`."""
        async with self.loader.lease(self.donation) as engine:
            return await engine.embed(request)

    async def count(self, request: CountRequest) -> int:
        """See `Operator`."""
        async with self.loader.lease(self.donation) as engine:
            return await engine.count(request)

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Operator`."""
        async with self.loader.lease(self.donation) as engine:
            return await engine.score(request)


@dataclass
class Donations:
    """All donated models of this peer. is_finishing: it is about to stop, and says so."""

    all: Sequence[Donation] = ()
    say: Callable[[str], None] = log.info
    is_finishing: bool = False
    open_engine: OpenEngine = open_engine
    _models: list[DonatedModel] = field(default_factory=list)

    def offered(self) -> Sequence[OfferedModel]:
        """What is offered now, for the advert."""
        return [offered for d in self.all if (offered := d.offered)]

    def models(self) -> Mapping[str, DonatedModel]:
        """What is offered now, by artifact, for the donor's side of the exchange."""
        return {
            offered.artifact: model
            for model in self._models
            if (offered := model.donation.offered) is not None
        }

    def own_models(self) -> Sequence[OwnModel]:
        """The same, for this peer's own router."""
        return [
            OwnModel(offered, model, load.n_ahead, load.prefill_tps, load.decode_tps)
            for model in self._models
            if (offered := model.donation.offered) and (load := model.donation.load)
        ]

    def load(self) -> Load:
        """How busy this donor is: its longest queue and its slowest speeds, so nobody is promised
        too much.
        """
        loads = [load for d in self.all if d.offered and (load := d.load)]
        return Load(
            state=DonorState.FINISHING if self.is_finishing else DonorState.ACCEPTING,
            queue=max((one.n_ahead for one in loads), default=0),
            prefill_tps=_slowest(one.prefill_tps for one in loads),
            decode_tps=_slowest(one.decode_tps for one in loads),
        )

    async def run(self, settings: Settings, store: ModelStore) -> None:
        """Load the models, and keep them until cancelled."""
        budget_bytes = settings.memory_bytes(machine_bytes())
        needs = {d.what: need for d in self.all if (need := await self._need(d, settings, store))}
        shares = share_memory(needs, budget_bytes)
        for donation in self.all:
            donation.share = shares.by_model.get(donation.what)
            if donation.what in needs and donation.share is None:
                self._refuse(donation, _too_large(needs[donation.what], budget_bytes))
        n_threads = settings.threads_each(shares.n_together)

        async def prepare(donation: Donation) -> EngineSpec:
            return await self._prepare(donation, settings, store, n_threads)

        loadable = [d for d in self.all if d.share is not None]
        loader = Loader(
            loadable,
            budget_bytes=budget_bytes,
            idle_unload_s=settings.idle_unload_s,
            prepare=prepare,
            open_engine=self.open_engine,
            say=self.say,
        )
        self._models = [DonatedModel(donation, loader) for donation in loadable]
        await loader.run()

    async def _need(self, donation: Donation, settings: Settings, store: ModelStore) -> Need | None:
        """What it will take; None if its file tells that it cannot be used."""
        try:
            path = store.locate(donation.what)
            donation.facts = await store.facts(path)
        except TokenplaceError as error:
            self._refuse(donation, error)
            return None
        return need_of(
            donation.facts,
            n_ctx=settings.n_ctx,
            n_slots=settings.n_slots,
            kv_type=settings.kv_type,
        )

    def _refuse(self, donation: Donation, error: TokenplaceError) -> None:
        donation.fail(str(error))
        self.say(f"{donation.name} is not offered: {error}")

    async def _prepare(
        self, donation: Donation, settings: Settings, store: ModelStore, n_threads: int
    ) -> EngineSpec:
        """Make sure of the file and say how to run it. Raises `TokenplaceError`."""
        donation.state, donation.progress = DonationState.HASHING, 0.0

        def on_progress(n_done: int, n_bytes: int) -> None:
            donation.progress = n_done / max(1, n_bytes)

        file = await store.verified(donation.what, on_progress)
        donation.name = file.name
        for other in self.all:
            if other is not donation and other.info and other.info.artifact == file.artifact:
                raise ConfigError(f"{donation.what} is the same file as {other.what}.")
        assert donation.share is not None, "only models that fit are loaded"
        return EngineSpec(
            path=file.path,
            name=file.name,
            artifact=file.artifact,
            n_threads=n_threads,
            n_ctx=settings.n_ctx,
            n_slots=settings.n_slots,
            kv_bytes=donation.share.kv_bytes,
            kv_type=settings.kv_type,
            n_gpu_layers=settings.n_gpu_layers,
            flash_attention=settings.flash_attention,
            is_owner_first=settings.is_owner_first,
        )


def _too_large(need: Need, budget_bytes: int) -> ConfigError:
    return ConfigError(
        f"It takes at least {_gb(need.least_bytes)} ({_gb(need.fixed_bytes)} and a KV cache of "
        f"{_gb(need.least_kv_bytes)}), and the donated models may take {_gb(budget_bytes)}.",
        hint="Allow more with --memory, or ask for less with --ctx or --kv-type.",
    )


def _slowest(speeds: Iterable[float]) -> float:
    """Of those known: a model made for embeddings generates nothing, and has no speed of it."""
    return min((speed for speed in speeds if speed), default=0.0)


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
