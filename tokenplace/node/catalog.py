"""The models that the local API lists: what somebody offers now, under the names this peer knows.
Pure but for its inputs.

Start at `NetworkCatalog`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tokenplace.api_shim.catalog import ModelCard
from tokenplace.errors import ModelNotFound
from tokenplace.features import Feature
from tokenplace.models.names import DEFAULT_ALIASES, EMBEDDING_ALIASES, ModelNames
from tokenplace.models.syntax import AUTO, PIN_HEX_DIGITS
from tokenplace.router.policy import rank_of

if TYPE_CHECKING:  # adverts import libp2p, which is loaded later
    from tokenplace.peer.adverts import OfferedModel


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
        """Known names first, then what only donors name, pinned; then the aliases that something
        can answer.
        """
        names, offered = self._names(), list(self._offered_now())
        shown = [*dict.fromkeys(names_of(offered, names)), *answered_aliases(offered, names)]
        return [self._card(name, names) for name in shown]

    async def get_model(self, name: str) -> ModelCard:
        """The card of any name that a request could use. Raises `ModelNotFound`."""
        names = self._names()
        names.resolve(name)
        return self._card(name, names)

    def _card(self, name: str, names: ModelNames) -> ModelCard:
        return ModelCard(name, self._created, root=names.aliases.get(name, ""))


def answered_aliases(offered: Iterable[OfferedModel], names: ModelNames) -> Iterator[str]:
    """`auto` and the aliases, as far as an offered model answers them; a built-in one only if the
    model is of its kind.
    """
    offers = list(offered)
    for alias in (AUTO, *names.aliases):
        try:
            wanted = names.resolve(alias)
        except ModelNotFound:
            continue  # what the user let it stand for is not known any more
        kinds = [Feature.EMBEDDINGS in o.features for o in offers if rank_of(o, wanted) is not None]
        if any(
            kind == (alias in EMBEDDING_ALIASES) or alias not in DEFAULT_ALIASES for kind in kinds
        ):
            yield alias


def names_of(offered: Iterable[OfferedModel], names: ModelNames) -> Iterator[str]:
    """Under which names the offered models can be asked for here: the tables' names first."""
    offers = list(offered)
    for model in names.known:
        if any(rank_of(offer, [model]) is not None for offer in offers):
            yield model.name
    for offer in offers:
        if rank_of(offer, names.known) is None:
            yield f"{offer.name}@sha256:{offer.artifact[:PIN_HEX_DIGITS]}"
