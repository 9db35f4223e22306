"""Requests that killed the worker, so that they cannot do it for ever. Start at `Quarantine`. Pure.

Differs from a log: only keyed digests are kept, so nothing here can be matched against a prompt by
others.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import fields
from typing import Final

import msgpack

from tokenplace import defaults
from tokenplace.engine.mailbox import Request
from tokenplace.engine.messages import to_value

# Who asks, and what chance and an earlier donor made of it: a retry may have others.
_NOT_COUNTED: Final = frozenset(
    {"request", "bucket", "seed", "cache_scope", "resume", "prompt_digest"}
)


class Quarantine:
    """Counts crashes by what was asked; the least recent are forgotten."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._n_crashes: OrderedDict[bytes, int] = OrderedDict()

    def digest(self, asked: Request) -> bytes:
        """The same for the same prompt, grammar and parameters, whoever asks."""
        counted = [
            value
            for field, value in zip(fields(asked), to_value(asked)[1:], strict=True)
            if field.name not in _NOT_COUNTED
        ]
        packed = msgpack.packb((type(asked).__name__, counted))
        return hashlib.blake2b(packed, key=self._key, digest_size=32).digest()

    def note_crash(self, digest: bytes) -> None:
        """The worker died while it computed this, perhaps among others."""
        self._count(digest, self._n_crashes.get(digest, 0) + 1)

    def condemn(self, digest: bytes) -> None:
        """This killed the worker, and nothing else did."""
        self._count(digest, defaults.CRASHES_TO_QUARANTINE)

    def clear(self, digest: bytes) -> None:
        """A worker lived through it."""
        self._n_crashes.pop(digest, None)

    def has(self, digest: bytes) -> bool:
        """Is this request not to be tried again?"""
        return self._n_crashes.get(digest, 0) >= defaults.CRASHES_TO_QUARANTINE

    def _count(self, digest: bytes, n: int) -> None:
        self._n_crashes.pop(digest, None)
        self._n_crashes[digest] = n
        if len(self._n_crashes) > defaults.MAX_CRASHES_REMEMBERED:
            self._n_crashes.popitem(last=False)
