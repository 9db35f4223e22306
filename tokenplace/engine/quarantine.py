"""Requests that killed the worker, so that they cannot do it for ever. Start at `Quarantine`. Pure.

Differs from a log: only keyed digests are kept, so nothing here can be matched against a prompt by
others.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict

import msgpack

from tokenplace import defaults
from tokenplace.engine.messages import Submit


class Quarantine:
    """Counts crashes by what was asked; the least recent are forgotten."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._n_crashes: OrderedDict[bytes, int] = OrderedDict()

    def digest(self, submit: Submit) -> bytes:
        """The same for the same prompt and parameters.

        Seed and scope do not count: a retry may have others.
        """
        asked = (
            *(submit.segments, submit.grammar, submit.sampling, submit.n),
            *(submit.max_tokens, submit.stop, submit.ignore_eog, submit.top_logprobs),
        )
        return hashlib.blake2b(msgpack.packb(asked), key=self._key, digest_size=32).digest()

    def note_crash(self, digest: bytes) -> None:
        """The worker died while it computed this."""
        self._n_crashes[digest] = self._n_crashes.pop(digest, 0) + 1
        if len(self._n_crashes) > defaults.MAX_CRASHES_REMEMBERED:
            self._n_crashes.popitem(last=False)

    def has(self, digest: bytes) -> bool:
        """Is this request not to be tried again?"""
        return self._n_crashes.get(digest, 0) >= defaults.CRASHES_TO_QUARANTINE
