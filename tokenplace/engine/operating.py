"""What a model is asked beside tokens, from the parent's side. Start at `embed`.

Each question is one message to the worker, and its answer is collected whole.
"""

from __future__ import annotations

from dataclasses import astuple

from tokenplace import defaults
from tokenplace.engine.messages import Count, Counted, Embed, Embedded, Refused, Score, Scored
from tokenplace.engine.prompt import Prompt
from tokenplace.engine.supervisor import Supervisor
from tokenplace.errors import (
    DONOR_ERRORS,
    ErrorCode,
    InvalidRequest,
    RequestTooBig,
    TokenplaceError,
)
from tokenplace.operations import Embeddings, EmbedRequest, ScoreRequest, Scores, TokenScore


async def embed(supervisor: Supervisor, request: EmbedRequest) -> Embeddings:
    """Vectors of ids, and of texts that are valid Unicode. Raises as `Engine.embed`."""
    n_texts = len(request.inputs)
    if not 1 <= n_texts <= defaults.MAX_EMBED_INPUTS:  # the worker says so too, but reads all first
        raise InvalidRequest(
            f"{n_texts} texts; 1 to {defaults.MAX_EMBED_INPUTS} are taken.", param="input"
        )
    parts = await _ask(supervisor, Embed(0, request.bucket, request.inputs, request.dimensions))
    vectors = [vector for part in parts if isinstance(part, Embedded) for vector in part.vectors]
    n_tokens = [n for part in parts if isinstance(part, Embedded) for n in part.n_tokens]
    return Embeddings(tuple(vectors), tuple(n_tokens))


async def count(supervisor: Supervisor, prompt: Prompt) -> int:
    """Tokens of a prompt. Raises as `Engine.count`."""
    if prompt.n_bytes > defaults.MAX_COUNT_BYTES:
        raise RequestTooBig(
            f"{prompt.n_bytes} bytes; {defaults.MAX_COUNT_BYTES} are counted at most."
        )
    (counted,) = await _ask(supervisor, Count(0, prompt.segments, prompt.ids))
    assert isinstance(counted, Counted), "the only answer to `Count`"
    return counted.n_tokens


async def score(supervisor: Supervisor, request: ScoreRequest, prompt: Prompt) -> Scores:
    """Scores of given ids after a prompt. Raises as `Engine.score`."""
    if not 1 <= len(request.ids) <= defaults.MAX_NEW_TOKENS:
        raise InvalidRequest(
            f"{len(request.ids)} ids; 1 to {defaults.MAX_NEW_TOKENS} are scored.", param="ids"
        )
    replay = request.replay
    parts = await _ask(
        supervisor,
        Score(
            request=0,
            bucket=request.bucket,
            segments=prompt.segments,
            ids=request.ids,
            cache_scope=request.cache_scope,
            sampling=astuple(replay.sampling) if replay is not None else (),
            seed=replay.seed if replay is not None else b"",
            choice=replay.choice if replay is not None else 0,
            prompt_ids=prompt.ids,
        ),
    )
    scored = [part for part in parts if isinstance(part, Scored)]
    return Scores(
        tokens=tuple(TokenScore(*fields) for part in scored for fields in part.scores),
        drawn=tuple(token_id for part in scored for token_id in part.drawn),
        n_prompt=scored[0].n_prompt,
    )


def error_of(refused: Refused) -> TokenplaceError:
    """What a worker's refusal stands for."""
    return DONOR_ERRORS[ErrorCode(refused.code)](refused.detail, numbers=dict(refused.numbers))


async def _ask(
    supervisor: Supervisor, question: Embed | Count | Score
) -> list[Embedded | Counted | Scored]:
    """All parts of the answer. Raises the error that ended it."""
    answer = await supervisor.submit(question)
    parts: list[Embedded | Counted | Scored] = []
    try:
        while True:
            match await answer.receive():
                case Refused() as refused:
                    raise error_of(refused)
                case TokenplaceError() as error:
                    raise error
                case Counted() as counted:
                    return [counted]
                case (Embedded() | Scored()) as part:
                    parts.append(part)
                    if part.is_last:
                        return parts
    finally:
        supervisor.forget(answer)
