"""`chat.completion` and its chunks. Start at `ChatForm`. Pure.

Beyond OpenAI, `reasoning_content` stands beside `content`, as DeepSeek, vLLM and llama.cpp have it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from tokenplace.api_shim.form import FinishReason, Json, Part, WholeChoice
from tokenplace.api_shim.logprobs import TokenLogprob
from tokenplace.api_shim.openai.objects import OpenAIForm, shown_logprob, usage_object
from tokenplace.generation import Usage
from tokenplace.text.deltas import CallArguments, CallBegin, Content, Delta, Reasoning, merge

CALL_ID_BYTES: Final = 12  # unique among the calls of a conversation


@dataclass(frozen=True, slots=True)
class ChatForm(OpenAIForm):
    """An answer to a chat.

    has_logprobs: they were asked for. metadata: comes back in the whole answer, and in the first
    chunk of a stream; None if the app gave none.
    """

    chunk_kind: ClassVar[str] = "chat.completion.chunk"

    has_logprobs: bool = False
    metadata: Json | None = None

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> Json:
        """See `AnswerForm`."""
        whole = [self._whole_choice(index, choice) for index, choice in enumerate(choices)]
        answer = {**self.object("chat.completion", whole), "usage": usage_object(usage)}
        return self._with_metadata(answer)

    def begin(self) -> list[Json]:
        """See `AnswerForm`."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        chunks = [self._chunk(choice, delta) for choice in range(self.n_choices)]
        return [self._with_metadata(chunks[0]), *chunks[1:]]

    def deltas(self, part: Part) -> list[Json]:
        """See `AnswerForm`. Log-probabilities go with the first."""
        logprobs = self._logprobs(part.logprobs) if part.logprobs else None
        chunks = []
        for delta in part.deltas:
            chunks.append(self._chunk(part.choice, self._delta(part.choice, delta), logprobs))
            logprobs = None
        if logprobs is not None:  # of tokens that a stop string cut in two
            chunks.append(self._chunk(part.choice, {"content": ""}, logprobs))
        return chunks

    def end(self, finish_reasons: Sequence[FinishReason], usage: Usage) -> list[Json]:
        """See `AnswerForm`."""
        last = [self._chunk(choice, {}, why=why) for choice, why in enumerate(finish_reasons)]
        return [*last, *self.usage_chunks(usage)]

    def _whole_choice(self, index: int, choice: WholeChoice) -> Json:
        content, reasoning, calls = merge(choice.deltas)
        message: Json = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [
                {
                    "id": self._call_id(index, number),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(calls)
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs) if self.has_logprobs else None,
            "finish_reason": choice.finish_reason,
        }

    def _delta(self, choice: int, delta: Delta) -> Json:
        match delta:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning_content": text}
            case CallBegin(index, name):
                call: Json = {
                    "index": index,
                    "id": self._call_id(choice, index),
                    "type": "function",
                    "function": {"name": name, "arguments": ""},
                }
            case CallArguments(index, text):
                call = {"index": index, "function": {"arguments": text}}
        return {"tool_calls": [call]}

    def _chunk(
        self,
        index: int,
        delta: Json,
        logprobs: Json | None = None,
        why: FinishReason | None = None,
    ) -> Json:
        return self.chunk(
            {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": why}
        )

    def _call_id(self, choice: int, index: int) -> str:
        """The same however the answer is sent, and another in every other answer."""
        place = f"{self.id} {choice} {index}".encode()
        return f"call_{hashlib.blake2b(place, digest_size=CALL_ID_BYTES).hexdigest()}"

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> Json:
        """All tokens that the model wrote, those of its thoughts too."""
        content = [
            {
                **_token(token.piece, token.logprob),
                "top_logprobs": [_token(top.piece, top.logprob) for top in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _with_metadata(self, answer: Json) -> Json:
        if self.metadata is not None:
            answer["metadata"] = self.metadata
        return answer


def _token(piece: bytes, logprob: float) -> Json:
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": shown_logprob(logprob),
        "bytes": list(piece),
    }
