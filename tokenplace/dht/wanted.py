"""What a search for donors looks for, and where. Pure. Start at `Wanted`."""

from __future__ import annotations

from dataclasses import dataclass

from tokenplace import defaults
from tokenplace.dht.directory_wire import Op, Query
from tokenplace.dht.donors import DonorRecord, offers
from tokenplace.dht.keys import Kind, keys_to_search
from tokenplace.models.syntax import is_sha256


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model by its names and artifacts, as in `donors.offers`."""

    names: tuple[str, ...]
    artifacts: tuple[str, ...]

    def is_met_by(self, record: DonorRecord) -> bool:
        """Does the donor offer it?"""
        return offers(record.offer.models, self.names, self.artifacts)

    @property
    def _subjects(self) -> list[tuple[Kind, str]]:
        """What it can be asked for by; none if there is too much of it, or only first digits."""
        subjects = [
            *((Kind.ARTIFACT, text) for text in self.artifacts if is_sha256(text)),
            *((Kind.MODEL, name) for name in self.names),
        ]
        return subjects if len(subjects) <= defaults.MAX_SUBJECTS else []

    def queries(self) -> list[Query]:
        """What to ask a directory; for any donors, if there is no better question."""
        values = dict.fromkeys(value for _, value in self._subjects)
        return [Query(Op.MODEL, value) for value in values] or [Query(Op.SAMPLE)]

    def keys(self, network: str, now: float) -> list[bytes]:
        """Where the DHT would know a donor."""
        subjects = self._subjects or [(Kind.DONORS, "")]
        return [
            key for kind, value in subjects for key in keys_to_search(network, kind, value, now)
        ]
