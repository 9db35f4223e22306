"""One model that this peer gives, and how far it has come. Start at `Donation`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import trio

from tokenplace import defaults
from tokenplace.engine.engine import EngineInfo, EngineLoad
from tokenplace.models.gguf_info import GgufFacts
from tokenplace.node.memory import Share
from tokenplace.operations import Answerer
from tokenplace.peer.adverts import OfferedModel


class LoadedEngine(Answerer, Protocol):
    """What is needed of `engine.Engine`."""

    @property
    def info(self) -> EngineInfo:
        """What may be said of its model."""

    @property
    def load(self) -> EngineLoad:
        """How busy it is, and how fast."""


class DonationState(StrEnum):
    """How far a donated model has come."""

    WAITING = "waiting"
    HASHING = "hashing"
    LOADING = "loading"
    OFFERED = "offered"
    UNLOADED = "unloaded"
    FAILED = "failed"


@dataclass(eq=False)
class Donation:
    """One donated model. `donating.py` and `loading.py` change it.

    what: as the person named it. name: as others know it, once the file was looked at.
    progress: the share of hashing that is done. reason: why it failed.
    info: what it offers, from its first start on. engine: while it is loaded.
    in_memory: from the beginning of a load until its memory was given back.
    is_leaving: it takes no new requests, because another model has waited for its room too long.
    n_users: requests that it answers. n_waiting: those that wait until it is loaded.
    used_at: when the last one ended. load_took_s: how long the last load took, hashing included.
    """

    what: str
    name: str = ""
    state: DonationState = DonationState.WAITING
    reason: str = ""
    progress: float = 0.0
    facts: GgufFacts | None = None
    share: Share | None = None
    info: EngineInfo | None = None
    engine: LoadedEngine | None = None
    in_memory: bool = False
    is_leaving: bool = False
    n_users: int = 0
    n_waiting: int = 0
    n_failures: int = 0
    used_at: float = 0.0
    load_took_s: float = 0.0
    leave: trio.Event = field(default_factory=trio.Event)
    _last_load: EngineLoad | None = None

    def __post_init__(self) -> None:
        self.name = self.name or self.what

    @property
    def offered(self) -> OfferedModel | None:
        """What the advert says of it; None while it is not offered.

        An unloaded model is: it is loaded again when somebody asks.
        """
        if self.info is None or self.state is DonationState.FAILED:
            return None
        info = self.info
        return OfferedModel(
            name=info.name,
            artifact=info.artifact,
            template=info.template,
            profile=info.profile,
            n_ctx=info.n_ctx,
            features=info.features,
            quant=self.facts.quantization[: defaults.MAX_QUANT_CHARS] if self.facts else "",
        )

    @property
    def load(self) -> EngineLoad | None:
        """How busy it is and how fast; its last speeds while it is unloaded, None before it ran."""
        if self.engine is not None:
            return self.engine.load
        if self._last_load is None:
            return None
        return replace(self._last_load, n_running=0, n_queued=self.n_waiting)

    @property
    def is_idle(self) -> bool:
        """Is it loaded, and does nobody need it now?"""
        return self.engine is not None and not self.n_users and not self.n_waiting

    def arrive(self, engine: LoadedEngine) -> None:
        """It is loaded, and has generated or embedded."""
        self.engine, self.info = engine, engine.info
        self.state, self.reason, self.n_failures = DonationState.OFFERED, "", 0

    def depart(self) -> None:
        """Its engine is about to end, or has ended; from now on nobody gets it."""
        if self.engine is not None:
            self._last_load = self.engine.load
            self.engine = None
        if self.state is DonationState.OFFERED:
            self.state = DonationState.UNLOADED

    def fail(self, reason: str) -> None:
        """It cannot be offered, and must prove itself anew before it is."""
        self.state, self.reason, self.info = DonationState.FAILED, reason, None
