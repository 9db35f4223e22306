"""What a search for donors looks for, and where. Pure. Start at `Wanted`."""

from __future__ import annotations

from dataclasses import dataclass

from tokenplace import defaults
from tokenplace.dht.directory_wire import Op, Query
from tokenplace.dht.donors import DonorRecord
from tokenplace.dht.keys import Kind, keys_to_search
from tokenplace.models.names import NamedModel
from tokenplace.models.syntax import is_sha256


@dataclass(frozen=True, slots=True)
class Wanted:
    """Any of these models, with all of `features`; if `peers` is not empty, of one of these, and of
    none of `besides`.

    If the artifact of one is known, artifacts and templates decide, and names only say where to
    look: they are the donor's word. Otherwise a name is enough. Whom one trusts is nobody else's
    business, so others are never asked for `peers`.
    """

    models: tuple[NamedModel, ...]
    features: frozenset[str] = frozenset()
    peers: frozenset[str] = frozenset()
    besides: frozenset[str] = frozenset()

    def is_met_by(self, record: DonorRecord) -> bool:
        """Does the donor offer one of them?"""
        if self.peers and record.peer_id not in self.peers:
            return False
        if record.peer_id in self.besides:
            return False
        offered = [o for o in record.offer.models if self.features.issubset(o.features)]
        if any(model.artifact for model in self.models):
            return any(model.fits(o.artifact, o.template) for o in offered for model in self.models)
        names = {model.name for model in self.models}
        return any(o.name in names for o in offered)

    @property
    def _subjects(self) -> list[tuple[Kind, str]]:
        """What it can be asked for by; none if there is too much of it, or only first digits."""
        subjects = [
            *((Kind.ARTIFACT, m.artifact) for m in self.models if is_sha256(m.artifact)),
            *((Kind.MODEL, m.name) for m in self.models if m.name),
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
