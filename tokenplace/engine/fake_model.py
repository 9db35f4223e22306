"""A model without weights: a token of an answer is a function of prompt, seed, choice and index.

Start at `FakeModel`. Pure. An answer goes on with the same tokens wherever it is resumed, and
two donors of the same model give the same answer. Text is nonsense, but valid UTF-8 as a whole;
words with characters of several bytes are split inside one, as real vocabularies do.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tokenplace.errors import InvalidRequest, ResumeRejected
from tokenplace.features import Feature
from tokenplace.generation import (
    ChatInput,
    EogStop,
    GenerateRequest,
    GrammarStop,
    IdsInput,
    Input,
    LengthStop,
    Logprob,
    Stop,
    StringStop,
    TextInput,
    TopToken,
)

WORDS = ("hello ", "tokens ", "are ", "naïve ", "Grüße ", "and ", "日本 ", "😀 ", "free ", "\n")
_PROMPT_TOKEN_BYTES = 4  # UTF-8, as much as a token of English has


@dataclass(frozen=True)
class FakeModel:
    """What a donor offers, how fast it is, and what it says.

    n_slots: requests that run at once; n_queued: that wait beside them.
    prefill_tps: prompt tokens a second, shared by the prompts being computed. decode_tps: of one
    stream alone. stream_cost: how much longer a step takes for each further stream; 0.5 is what a
    CPU does, near 0 a GPU.
    n_answer: tokens that an answer has by itself, at least and at most; whole words are made of it.
    n_dimensions: of its vectors, if it makes them instead of generating. begun: see `Accepted`.
    """

    name: str = "fake-model"
    artifact: str = hashlib.sha256(b"fake-model").hexdigest()
    template: str = hashlib.sha256(b"fake-template").hexdigest()
    profile: str = "fake"
    features: tuple[str, ...] = ("chat", "grammar")
    n_ctx: int = 4096
    n_slots: int = 4
    n_queued: int = 64
    prefill_tps: float = 1000.0
    decode_tps: float = 100.0
    stream_cost: float = 0.5
    n_answer: tuple[int, int] = (16, 64)
    words: tuple[str, ...] = WORDS
    n_dimensions: int = 0
    begun: str = ""

    @property
    def offered_features(self) -> tuple[str, ...]:
        """What its engine says that it can do."""
        return (Feature.EMBEDDINGS,) if self.n_dimensions else self.features

    @property
    def eog_id(self) -> int:
        """The end-of-generation token. Below it are the halves of words, above it all bytes."""
        return 2 * len(self.words)

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""
        return self.eog_id + 1 + 256

    def piece(self, token_id: int) -> bytes:
        """Raw bytes of a token."""
        if token_id == self.eog_id:
            return b""
        if token_id > self.eog_id:
            return bytes([token_id - self.eog_id - 1])
        first, second = _halves(self.words[token_id // 2])
        return second if token_id % 2 else first

    def step_s(self, n_streams: int) -> float:
        """Seconds in which each of so many streams gets a token."""
        return (1 + (n_streams - 1) * self.stream_cost) / self.decode_tps


class Answer:
    """One choice of an answer. `index` is of the token that comes next, `stop` why none does.

    ids: what another donor delivered of it. Raises `ResumeRejected` if it cannot go on from there.
    """

    def __init__(
        self,
        model: FakeModel,
        request: GenerateRequest,
        choice: int,
        max_new: int,
        ids: Sequence[int] = (),
    ) -> None:
        self.choice = choice
        self.index = 0
        self.stop: Stop | None = None
        self._model = model
        self._request = request
        self._max_new = max_new
        # Without temperature nothing is drawn, so neither seed nor choice matters.
        drawn = request.seed + bytes([choice]) if request.sampling.temperature > 0 else b""
        self._key = hashlib.sha256(prompt_digest(prompt_ids(request.input)) + drawn).digest()
        self._json = _json_text(model, self._key) if request.output else b""
        self._stops = tuple(stop.encode() for stop in request.stop)
        self._tail = b""
        for token_id in ids:
            if not 0 <= token_id < model.n_tokens:
                raise ResumeRejected("It names tokens that do not exist.")
            if self.stop is not None:
                raise ResumeRejected("It goes on behind its end.")
            if self._json and token_id != self._id_at(self.index):
                raise ResumeRejected("The grammar forbids its tokens.")
            self._accept(token_id)

    def next(self) -> tuple[int, bytes, Logprob] | None:
        """The next token, its bytes and how likely it was; None when the model ends its turn
        instead. Afterwards `stop` says whether, and why, nothing follows.
        """
        assert self.stop is None, "an answer goes on after its end"
        if not self._json and not self._request.ignore_eog and self.index >= self._natural_length:
            self.stop = EogStop(self._model.eog_id)
            return None
        token_id = self._id_at(self.index)
        logprob = self._logprob(token_id)
        self._accept(token_id)
        return token_id, self._model.piece(token_id), logprob

    def drawn_at(self, index: int) -> int:
        """The id that stands at this place, its end included, if all before it are its own."""
        is_over = not self._request.ignore_eog and index >= self._natural_length
        return self._model.eog_id if is_over else self._id_at(index)

    @property
    def _natural_length(self) -> int:
        least, most = (n // 2 for n in self._model.n_answer)
        return 2 * (least + _draw(self._key, "length") % (most - least + 1))

    def _id_at(self, index: int) -> int:
        if self._json:
            return self._model.eog_id + 1 + self._json[index]
        return 2 * _word(self._model, self._key, index // 2) + index % 2

    def _accept(self, token_id: int) -> None:
        """Count in a token, and see whether the answer ends with it."""
        self.index += 1
        window = self._tail + self._model.piece(token_id)
        found = [(at, stop) for stop in self._stops if (at := window.find(stop)) >= 0]
        self._tail = window[-max(map(len, self._stops), default=1) :]
        if found:
            self.stop = StringStop(min(found)[1].decode())
        elif self._json and self.index == len(self._json):
            self.stop = GrammarStop()
        elif self.index == self._max_new:
            self.stop = LengthStop()

    def _logprob(self, token_id: int) -> Logprob:
        """The drawn token is the most likely, and each further one half as likely as the last."""
        own = 0.4 + 0.5 * (_draw(self._key, f"probability {self.index}") % 100) / 100
        top = []
        for place in range(self._request.top_logprobs or 0):
            other = (token_id + place) % self._model.n_tokens
            share = own if place == 0 else (1 - own) / 2**place
            top.append(TopToken(other, self._model.piece(other), math.log(share)))
        return Logprob(math.log(own), tuple(top))


def prompt_ids(asked: Input) -> tuple[int, ...]:
    """The prompt's tokens; any of 32 bits is one. Raises `InvalidRequest` for text that is none."""
    return asked.ids if isinstance(asked, IdsInput) else text_ids(_prompt_text(asked))


def text_ids(text: str) -> tuple[int, ...]:
    """A text's tokens. Raises `InvalidRequest` for one that is not valid Unicode."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("The text is not valid Unicode.", param="messages") from None
    starts = range(0, len(data), _PROMPT_TOKEN_BYTES)
    return tuple(
        int.from_bytes(data[start : start + _PROMPT_TOKEN_BYTES], "little") for start in starts
    )


def prompt_digest(ids: Sequence[int]) -> bytes:
    """sha256 of the prompt's ids as little-endian u32 (docs/protocol.md, section 5)."""
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).digest()


def n_common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the longest common prefix."""
    for place, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return place
    return min(len(a), len(b))


def _prompt_text(asked: TextInput | ChatInput) -> str:
    match asked:
        case TextInput(prompt):
            return prompt
        case ChatInput(messages, tools):
            lines = [f"{tool.name}: {tool.description} {tool.parameters}" for tool in tools]
            for message in messages:
                calls = "".join(f" {call.name}({call.arguments})" for call in message.tool_calls)
                lines.append(f"{message.role}: {message.content}{calls}")
            return "\n".join([*lines, "assistant:"])


def _json_text(model: FakeModel, key: bytes) -> bytes:
    """It knows no schemas: every answer that must have a form is this object."""
    words = "".join(model.words[_word(model, key, cell)] for cell in range(4))
    return json.dumps({"answer": words.strip()}, ensure_ascii=False).encode()


def _halves(word: str) -> tuple[bytes, bytes]:
    """Split inside the first character of several bytes, if there is one."""
    data = word.encode()
    wide = next((at for at, byte in enumerate(data) if byte >= 0x80), None)
    middle = len(data) // 2 if wide is None else wide + 1
    return data[:middle], data[middle:]


def _word(model: FakeModel, key: bytes, cell: int) -> int:
    return _draw(key, f"word {cell}") % len(model.words)


def _draw(key: bytes, what: str) -> int:
    return int.from_bytes(hashlib.sha256(key + what.encode()).digest()[:8], "big")
