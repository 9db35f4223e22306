"""What is asked of a donor, as what is sealed (docs/protocol.md, section 4). Start at
`encode_request` and `to_request`.

Pure. The map that a stranger sent is read in `request_map.py`, its body in `gen1.py` and
`question_bodies.py`; what a donor says in clear is in `refusal.py`, the answer's frames are in
`frames.py`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from tokenplace.errors import (
    InvalidRequest,
    Unsupported,
)
from tokenplace.features import Requirement
from tokenplace.generation import (
    CACHE_SCOPE_BYTES,
    SEED_BYTES,
    ChatInput,
    GenerateRequest,
    IdsInput,
    Input,
    SamplingParams,
)
from tokenplace.operations import CountRequest, EmbedRequest, Replay, Request, ScoreRequest
from tokenplace.peer import gen1, grease, question_bodies
from tokenplace.peer.refusal import packed
from tokenplace.peer.request_map import VERSION, RequestMap
from tokenplace.sealing.request import padded_bytes

GENERATE_PROTOCOL: Final = "/tokenplace/generate/1.0.0"
FRAME_LENGTH: Final = struct.Struct(">I")

_KNOWN_REQUIREMENTS: Final = frozenset(Requirement)
# For what an operation has no use for: the keys must be there, and their values have a form.
_NO_SEED: Final = bytes(SEED_BYTES)
_NO_SCOPE: Final = bytes(CACHE_SCOPE_BYTES)
_NO_DAY: Final = "1970-01-01"


class Op(StrEnum):
    """What is asked."""

    GENERATE = "generate"
    EMBED = "embed"
    COUNT = "count"
    SCORE = "score"


def encode_request(
    request: Request,
    epoch: bytes,
    resp_secret: bytes,
    reply_key: bytes,
    dice: random.Random | None = None,
) -> bytes:
    """The payload to seal. Raises what encoding the body raises.

    dice: for a key that means nothing (`grease.py`); None: without one.
    """
    fields: dict[str, object] = {
        "v": VERSION,
        "requires": requirements_of(request),
        "epoch": epoch,
        "resp_secret": resp_secret,
        "reply_key": reply_key,
        "artifact": request.artifact,
        **_fields_of(request),
    }
    payload = packed(fields)
    if dice is None:
        return payload
    greased = packed(grease.with_unknown_key(fields, dice))
    is_larger = padded_bytes(len(greased)) > padded_bytes(len(payload))
    return payload if is_larger else greased


def _fields_of(request: Request) -> dict[str, object]:
    """The keys that depend on what is asked."""
    match request:
        case GenerateRequest():
            fields = _common_fields(
                Op.GENERATE,
                template=request.template,
                cache_scope=request.cache_scope,
                seed=request.seed,
                as_of=request.as_of,
                attempt=request.attempt,
            )
            if request.is_hedge:
                fields["hedge"] = True
            if request.resume:
                fields["resume"] = [
                    {"choice": resume.choice, "ids": _packed_ids(resume.ids)}
                    for resume in request.resume
                ]
                fields["prompt_digest"] = request.prompt_digest
            return fields | {"body": gen1.encode_body(request)}
        case EmbedRequest():
            fields = _common_fields(Op.EMBED)
        case CountRequest():
            fields = _common_fields(Op.COUNT, template=request.template, as_of=request.as_of)
        case ScoreRequest():
            fields = _common_fields(
                Op.SCORE,
                template=request.template,
                cache_scope=request.cache_scope,
                seed=_NO_SEED if request.replay is None else request.replay.seed,
                as_of=request.as_of,
            )
    return fields | {"body": question_bodies.encode_question(request)}


def _common_fields(
    op: Op,
    *,
    template: str = "",
    cache_scope: bytes = _NO_SCOPE,
    seed: bytes = _NO_SEED,
    as_of: str = _NO_DAY,
    attempt: int = 0,
) -> dict[str, object]:
    return {
        "op": op.value,
        "template": template,
        "cache_scope": cache_scope,
        "seed": seed,
        "as_of": as_of,
        "attempt": attempt,
    }


def requirements_of(request: Request) -> list[str]:
    """What a donor must understand, lest it answer something else. What is neutral needs nothing,
    so that older donors can still be asked.
    """
    match request:
        case GenerateRequest():
            required = _of_prompt(request.input) | _of_sampling(request.sampling)
            required |= {
                Requirement.CHOICES: request.n > 1,
                Requirement.GRAMMAR: request.output is not None,
                Requirement.LOGPROBS: request.top_logprobs is not None,
                Requirement.RESUME: bool(request.resume),
            }
        case EmbedRequest():
            required = {}
        case CountRequest():
            required = _of_prompt(request.input)
        case ScoreRequest():
            required = _of_prompt(request.input)
            if request.replay is not None:
                required |= _of_sampling(request.replay.sampling)
    return sorted(name.value for name, is_required in required.items() if is_required)


def _of_prompt(prompt: Input) -> dict[Requirement, bool]:
    has_tools = isinstance(prompt, ChatInput) and (
        bool(prompt.tools)
        or any(turn.role == "tool" or turn.tool_calls for turn in prompt.messages)
    )
    return {Requirement.TOOLS: has_tools, Requirement.PROMPT_IDS: isinstance(prompt, IdsInput)}


def _of_sampling(sampling: SamplingParams) -> dict[Requirement, bool]:
    usual = SamplingParams()
    has_penalties = (
        sampling.typical_p != usual.typical_p
        or sampling.repeat_penalty != usual.repeat_penalty
        or sampling.presence_penalty != usual.presence_penalty
        or sampling.frequency_penalty != usual.frequency_penalty
        or sampling.logit_bias != usual.logit_bias
    )
    return {Requirement.PENALTIES: has_penalties}


def to_request(request: RequestMap, bucket: str) -> Request:
    """bucket: as of `GenerateRequest`. Raises `Unsupported` for what this version lacks, and what
    `gen1.parse_body` raises.
    """
    for name in request.requires:
        if name not in _KNOWN_REQUIREMENTS:
            raise Unsupported(f"feature {name!r}")
    match request.op:
        case Op.GENERATE:
            return _to_generate_request(request, bucket)
        case Op.EMBED:
            inputs, dimensions = question_bodies.parse_embed(request.body)
            return EmbedRequest("", inputs, dimensions, request.artifact, bucket)
        case Op.COUNT:
            prompt = question_bodies.parse_count(request.body)
            return CountRequest("", prompt, request.as_of, request.artifact, request.template)
        case Op.SCORE:
            return _to_score_request(request, bucket)
    raise Unsupported(f"operation {request.op!r}")


def _to_score_request(request: RequestMap, bucket: str) -> ScoreRequest:
    body = question_bodies.parse_score(request.body)
    replay = None
    if body.replay is not None:
        sampling, choice = body.replay
        replay = Replay(sampling, request.seed, choice)
    return ScoreRequest(
        model="",
        input=body.input,
        ids=body.ids,
        cache_scope=request.cache_scope,
        as_of=request.as_of,
        replay=replay,
        artifact=request.artifact,
        template=request.template,
        bucket=bucket,
    )


def _to_generate_request(request: RequestMap, bucket: str) -> GenerateRequest:
    body = gen1.parse_body(request.body)
    if any(resume.choice >= body.n for resume in request.resume):
        raise InvalidRequest("resume names a choice that was not asked for", param="resume")
    return GenerateRequest(
        model="",
        input=body.input,
        sampling=body.sampling,
        seed=request.seed,
        cache_scope=request.cache_scope,
        as_of=request.as_of,
        max_tokens=body.max_tokens,
        stop=body.stop,
        ignore_eog=body.ignore_eog,
        artifact=request.artifact,
        template=request.template,
        attempt=request.attempt,
        n=body.n,
        top_logprobs=body.top_logprobs,
        output=body.output,
        resume=request.resume,
        prompt_digest=request.prompt_digest,
        is_hedge=request.hedge,
        bucket=bucket,
    )


def _packed_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)
