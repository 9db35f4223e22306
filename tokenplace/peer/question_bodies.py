"""emb/1, cnt/1 and scr/1: the JSON of what is asked beside tokens (docs/protocol.md, section 7).
Start at `encode_question` and `parse_embed`.

Pure, and with gen/1's rules throughout: what is common to both is read by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenplace import defaults
from tokenplace.errors import InvalidRequest
from tokenplace.generation import Input, SamplingParams
from tokenplace.operations import CountRequest, EmbedRequest, Question, Replay, ScoreRequest
from tokenplace.peer.gen1_fields import ids, ids_text, integer, is_text, items
from tokenplace.peer.gen1_input import input_fields, read_input, read_json, to_json
from tokenplace.peer.gen1_sampling import read_sampling, sampling_fields

EmbedInputs = tuple[str | tuple[int, ...], ...]


def encode_question(question: Question) -> bytes:
    """The body. Raises as `to_json`."""
    match question:
        case EmbedRequest():
            return to_json(_embed_fields(question))
        case CountRequest():
            return to_json(input_fields(question.input))
        case ScoreRequest():
            fields = input_fields(question.input) | {"ids": ids_text(question.ids, "ids")}
            if question.replay is not None:
                fields["replay"] = _replay_fields(question.replay)
            return to_json(fields)


def parse_embed(body: bytes) -> tuple[EmbedInputs, int | None]:
    """The inputs and the dimensions of emb/1. Raises as `gen1.parse_body`."""
    fields, _ = read_json(body)
    inputs = items(fields, "inputs", 1, defaults.MAX_EMBED_INPUTS, param="inputs")
    return (
        tuple(_read_input(value, f"inputs[{number}]") for number, value in enumerate(inputs)),
        integer(fields, "dimensions", 1, defaults.MAX_EMBED_DIMENSIONS),
    )


def parse_count(body: bytes) -> Input:
    """The prompt of cnt/1. Raises as `gen1.parse_body`."""
    return read_input(*read_json(body))


@dataclass(frozen=True, slots=True)
class ScoreBody:
    """What scr/1 says of a request. choice, sampling: of the replay; None: there is none."""

    input: Input
    ids: tuple[int, ...]
    replay: tuple[SamplingParams, int] | None


def parse_score(body: bytes) -> ScoreBody:
    """Raises as `gen1.parse_body`."""
    fields, reader = read_json(body)
    return ScoreBody(
        input=read_input(fields, reader),
        ids=ids(fields.get("ids"), defaults.MAX_NEW_TOKENS, param="ids"),
        replay=_read_replay(fields["replay"]) if "replay" in fields else None,
    )


def _embed_fields(question: EmbedRequest) -> dict[str, object]:
    inputs = [
        given if isinstance(given, str) else {"ids": ids_text(given, f"inputs[{number}]")}
        for number, given in enumerate(question.inputs)
    ]
    fields: dict[str, object] = {"inputs": inputs}
    if question.dimensions is not None:
        fields["dimensions"] = question.dimensions
    return fields


def _read_input(value: Any, param: str) -> str | tuple[int, ...]:
    match value:
        case str() if value and is_text(value):
            return value
        case {"ids": given}:
            return ids(given, defaults.MAX_EMBED_TOKENS, param=param)
    raise InvalidRequest(f"{param} must be text and not empty, or ids", param=param)


def _replay_fields(replay: Replay) -> dict[str, object]:
    fields = sampling_fields(replay.sampling)
    if replay.choice:
        fields["choice"] = replay.choice
    return fields


def _read_replay(fields: Any) -> tuple[SamplingParams, int]:
    if type(fields) is not dict:
        raise InvalidRequest("replay must be an object", param="replay")
    choice = integer(fields, "choice", 0, defaults.MAX_CHOICES - 1)
    return read_sampling(fields), choice or 0
