"""The models that the local API lists: what somebody offers now, under the names this peer knows.
Pure but for its inputs.

Start at `NetworkCatalog`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tokenplace.api_shim.catalog import ModelCard
from tokenplace.models.names import ModelNames
from tokenplace.models.syntax import AUTO
from tokenplace.router.policy import rank_of

if TYPE_CHECKING:  # adverts import libp2p, which is loaded later
    from tokenplace.peer.adverts import OfferedModel

PIN_HEX_DIGITS = 12


class NetworkCatalog:
    """A `ModelCatalog` over the offers known now."""

    def __init__(
        self,
        names: Callable[[], ModelNames],
        offered_now: Callable[[], Iterable[OfferedModel]],
        created: int,
    ) -> None:
        """created: unix seconds that the cards carry; when a model was made is not known."""
        self._names = names
        self._offered_now = offered_now
        self._created = created

    async def list_models(self) -> Sequence[ModelCard]:
        """Known names first, then what only donors name, pinned; then the aliases, if anything can
        answer them.
        """
        names = self._names()
        shown = dict.fromkeys(names_of(self._offered_now(), names))
        known = [model.name for model in names.known if model.name in shown]
        if known:
            shown |= dict.fromkeys([AUTO, *names.aliases])
        return [ModelCard(id=name, created=self._created) for name in shown]

    async def get_model(self, name: str) -> ModelCard:
        """The card of any name that a request could use. Raises `ModelNotFound`."""
        self._names().resolve(name)
        return ModelCard(id=name, created=self._created)


def names_of(offered: Iterable[OfferedModel], names: ModelNames) -> Iterator[str]:
    """Under which names the offered models can be asked for here: the tables' names first."""
    offers = list(offered)
    for model in names.known:
        if any(rank_of(offer, [model]) is not None for offer in offers):
            yield model.name
    for offer in offers:
        if rank_of(offer, names.known) is None:
            yield f"{offer.name}@sha256:{offer.artifact[:PIN_HEX_DIGITS]}"
