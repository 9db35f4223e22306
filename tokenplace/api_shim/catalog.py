"""Which models the API can name. Start at `ModelCatalog`, which the peer implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model as apps see it. created: unix seconds. root: what it stands for, if an alias."""

    id: str
    created: int
    root: str = ""


class ModelCatalog(Protocol):
    """The models that can be asked for now."""

    async def list_models(self) -> Sequence[ModelCard]:
        """What the network and this peer offer. May wait for a search, within its deadline."""

    async def get_model(self, name: str) -> ModelCard:
        """The model of that name or alias; raises `ModelNotFound`."""
