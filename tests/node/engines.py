"""Fake engines behind `loading.OpenEngine`, to see who is in memory when. Start at `Shelf`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tokenplace.engine.engine import EngineSpec
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import TokenplaceError


@dataclass
class Shelf:
    """Opens engines. loaded: names of those in memory; most: how many were at once; specs: of all
    that were opened. fails: what opening one raises. load_s: how long that takes.
    """

    load_s: float = 0.0
    loaded: list[str] = field(default_factory=list)
    most: int = 0
    n_loading: int = 0
    specs: list[EngineSpec] = field(default_factory=list)
    fails: dict[str, TokenplaceError] = field(default_factory=dict)

    @asynccontextmanager
    async def open(self, spec: EngineSpec) -> AsyncIterator[FakeEngine]:
        assert self.n_loading == 0, "one after the other"
        self.specs.append(spec)
        self.n_loading += 1
        try:
            await trio.sleep(self.load_s)
            if spec.name in self.fails:
                raise self.fails[spec.name]
        finally:
            self.n_loading -= 1
        self.loaded.append(spec.name)
        self.most = max(self.most, len(self.loaded))
        try:
            yield FakeEngine(FakeModel(spec.name, spec.artifact, prefill_tps=900, decode_tps=80))
        finally:
            self.loaded.remove(spec.name)
