"""Which donor holds the beginning of a conversation in its KV cache. Start at `Affinity`.

Pure: `now` is an argument. Nothing here goes to the network, and nothing of a prompt is kept: the
beginnings of conversations are digests under a key that this process alone has (BLAKE2b, RFC 7693).
Each digest covers all messages before it, so the longest beginning that is known is found by
looking from the end. What a donor answered is part of it once the app sends it back as a message.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tokenplace import defaults
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    GenerateRequest,
    IdsInput,
    Input,
    TextInput,
)

KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 16
BYTES_PER_TOKEN: Final = 4  # of English text; only decides how long a prompt is thought to be
# Of one conversation: its first messages, which others share, and its last, which grow.
FIRST_KEPT: Final = 4
LAST_KEPT: Final = 28
# A raw prompt is looked at in pieces of so many bytes, or ids.
_PIECE_BYTES: Final = 2048
_PIECE_IDS: Final = 512
_HOLDERS: Final = 4  # donors remembered for one beginning


@dataclass(frozen=True, slots=True)
class Prefix:
    """One beginning. n_tokens: an estimate of its length."""

    digest: bytes
    n_tokens: int


def n_prompt_of(asked: Input) -> int:
    """How many tokens a prompt has, roughly."""
    if isinstance(asked, IdsInput):
        return len(asked.ids)
    if isinstance(asked, TextInput):
        return len(asked.prompt.encode()) // BYTES_PER_TOKEN
    return sum(_n_bytes(message) for message in asked.messages) // BYTES_PER_TOKEN


class Affinity:
    """Who holds which beginnings; the oldest are forgotten first."""

    def __init__(self, key: bytes) -> None:
        """key: `KEY_BYTES` random bytes of this process."""
        assert len(key) == KEY_BYTES
        self._key = key
        self._holders: OrderedDict[bytes, dict[tuple[str, str], float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def prefixes_of(self, request: GenerateRequest) -> tuple[Prefix, ...]:
        """The beginnings of this request's prompt, shortest first. Of two apps, models or sets of
        tools they never are the same.
        """
        tools = request.input.tools if isinstance(request.input, ChatInput) else ()
        digest = self._digest(b"", request.cache_scope + repr((request.model, tools)).encode())
        n_bytes = len(repr(tools)) if tools else 0
        found = []
        for piece, n_more in _pieces(request.input):
            digest = self._digest(digest, piece)
            n_bytes += n_more
            found.append(Prefix(digest, n_bytes // BYTES_PER_TOKEN))
        return tuple(found[:FIRST_KEPT] + found[FIRST_KEPT:][-LAST_KEPT:])

    def note_held(self, prefixes: Sequence[Prefix], donor: str, artifact: str, now: float) -> None:
        """The donor has read this prompt, with all its beginnings."""
        for prefix in prefixes:
            holders = self._holders.setdefault(prefix.digest, {})
            holders.pop((donor, artifact), None)
            holders[donor, artifact] = now
            if len(holders) > _HOLDERS:
                del holders[next(iter(holders))]
            self._holders.move_to_end(prefix.digest)
        while len(self._holders) > defaults.MAX_PREFIXES:
            self._holders.popitem(last=False)

    def note_lost(self, prefixes: Sequence[Prefix], donor: str, artifact: str) -> None:
        """The donor had nothing of this prompt any more."""
        for prefix in prefixes:
            self._holders.get(prefix.digest, {}).pop((donor, artifact), None)

    def n_held(self, prefixes: Sequence[Prefix], donor: str, artifact: str, now: float) -> int:
        """How many of the prompt's tokens the donor need not read again, as far as is known."""
        for prefix in reversed(prefixes):
            at = self._holders.get(prefix.digest, {}).get((donor, artifact))
            if at is not None and now - at <= defaults.PREFIX_HELD_S:
                return prefix.n_tokens
        return 0

    def _digest(self, before: bytes, piece: bytes) -> bytes:
        # `before` has one length but at the start, where nothing else is: no two chains are alike.
        return hashlib.blake2b(before + piece, digest_size=DIGEST_BYTES, key=self._key).digest()


def _pieces(asked: Input) -> Iterator[tuple[bytes, int]]:
    """The parts of a prompt, as bytes without ambiguity, and how many bytes of text each has."""
    if isinstance(asked, ChatInput):
        for message in asked.messages:
            yield repr(message).encode(), _n_bytes(message)
    elif isinstance(asked, IdsInput):
        for start in range(0, len(asked.ids), _PIECE_IDS):
            ids = asked.ids[start : start + _PIECE_IDS]
            yield repr(ids).encode(), len(ids) * BYTES_PER_TOKEN
    else:
        data = asked.prompt.encode()
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            yield piece, len(piece)


def _n_bytes(message: ChatMessage) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.content.encode()) + calls
