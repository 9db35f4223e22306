"""What a request gets from its surroundings rather than from its app. Start at `SurroundingsOf`."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request

from tokenplace.api_shim.request_id import id_of
from tokenplace.generation import CACHE_SCOPE_BYTES, SEED_BYTES


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Clock and dice of one request.

    random_seed: 8 bytes, taken when the app gave no seed. cache_scope, as_of: as in
    `GenerateRequest`. id: random hex digits, of the request and its answer. now: unix seconds.
    """

    random_seed: bytes
    cache_scope: bytes
    as_of: str
    id: str
    now: int


class SurroundingsOf:
    """Takes them for a request. Apps that show different keys get different cache scopes."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(CACHE_SCOPE_BYTES)

    def __call__(self, http: Request) -> Surroundings:
        key = http.headers.get("authorization", "").encode()
        scope = hashlib.blake2b(key, key=self._secret, digest_size=CACHE_SCOPE_BYTES)
        now = time.time()
        return Surroundings(
            random_seed=secrets.token_bytes(SEED_BYTES),
            cache_scope=scope.digest(),
            as_of=datetime.fromtimestamp(now, UTC).date().isoformat(),
            id=id_of(http.scope),
            now=int(now),
        )
