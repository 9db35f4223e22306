"""What a fake engine answers to other questions than for tokens. Start at `embed` and `score`.

Pure. Vectors are functions of a text's tokens and the model, so equal texts have equal ones, on any
donor. Scores fit what `fake_model.Answer` draws: a replayed answer scores as its own.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct

from tokenplace import defaults
from tokenplace.engine.fake_model import Answer, FakeModel, prompt_digest, prompt_ids, text_ids
from tokenplace.errors import ContextLengthExceeded, InvalidRequest, RequestTooBig, Unsupported
from tokenplace.features import Feature
from tokenplace.generation import GenerateRequest, SamplingParams
from tokenplace.operations import (
    FLOAT_BYTES,
    Embeddings,
    EmbedRequest,
    ScoreRequest,
    Scores,
    TokenScore,
)

_OWN_PROBABILITY = 0.75  # of the token that it would draw; each other one shares the rest
_GREEDY = SamplingParams(temperature=0.0)


def embed(model: FakeModel, request: EmbedRequest) -> Embeddings:
    """Raises `Unsupported`, `InvalidRequest`, `ContextLengthExceeded` and `RequestTooBig`."""
    if not model.n_dimensions:
        raise Unsupported(Feature.EMBEDDINGS)
    n_inputs, n_numbers = len(request.inputs), request.dimensions or model.n_dimensions
    if not 1 <= n_inputs <= defaults.MAX_EMBED_INPUTS or not all(request.inputs):
        raise InvalidRequest("It needs some texts, and none of them empty.", param="input")
    if not 1 <= n_numbers <= model.n_dimensions:
        raise InvalidRequest(f"These vectors have {model.n_dimensions} numbers.")
    if FLOAT_BYTES * n_numbers * n_inputs > defaults.MAX_VECTORS_BYTES:
        raise RequestTooBig
    inputs = [text_ids(given) if isinstance(given, str) else given for given in request.inputs]
    longest = max(map(len, inputs))
    if longest > model.n_ctx:
        raise ContextLengthExceeded(numbers={"n_prompt": longest, "n_ctx": model.n_ctx})
    vectors = tuple(_vector(model, ids, n_numbers) for ids in inputs)
    return Embeddings(vectors, tuple(map(len, inputs)))


def score(model: FakeModel, request: ScoreRequest) -> Scores:
    """Raises `InvalidRequest` and `ContextLengthExceeded`."""
    prompt = prompt_ids(request.input)
    n_all = len(prompt) + len(request.ids)
    if not request.ids or not all(0 <= token_id < model.n_tokens for token_id in request.ids):
        raise InvalidRequest("ids must name tokens of this vocabulary.", param="ids")
    if n_all > model.n_ctx:
        raise ContextLengthExceeded(numbers={"n_prompt": n_all, "n_ctx": model.n_ctx})
    own = _drawn(model, request, _GREEDY, bytes(8), 0)
    drawn: tuple[int, ...] = ()
    if request.replay is not None:
        replay = request.replay
        own = drawn = _drawn(model, request, replay.sampling, replay.seed, replay.choice)
    scores = tuple(
        _score(model, token_id == own_id) for token_id, own_id in zip(request.ids, own, strict=True)
    )
    return Scores(scores, drawn, len(prompt))


def _vector(model: FakeModel, ids: tuple[int, ...], n_numbers: int) -> bytes:
    digest = hashlib.sha256(model.artifact.encode() + prompt_digest(ids)).digest()
    dice = random.Random(int.from_bytes(digest))
    numbers = [dice.uniform(-1, 1) for _ in range(model.n_dimensions)][:n_numbers]
    length = math.hypot(*numbers)
    return struct.pack(f"<{n_numbers}f", *(number / length for number in numbers))


def _drawn(
    model: FakeModel, request: ScoreRequest, sampling: SamplingParams, seed: bytes, choice: int
) -> tuple[int, ...]:
    asked = GenerateRequest("", request.input, sampling, seed, request.cache_scope, request.as_of)
    answer = Answer(model, asked, choice, len(request.ids))
    return tuple(map(answer.drawn_at, range(len(request.ids))))


def _score(model: FakeModel, is_own: bool) -> TokenScore:
    if is_own:
        return TokenScore(math.log(_OWN_PROBABILITY), gap=0.0, rank=0, mass=0.0)
    share = (1 - _OWN_PROBABILITY) / (model.n_tokens - 1)
    gap = math.log(_OWN_PROBABILITY / share)
    return TokenScore(math.log(share), gap, rank=1, mass=_OWN_PROBABILITY)
