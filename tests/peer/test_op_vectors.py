"""tests/vectors/ops.json, as a second implementation would use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.peer.exchange_lab import TINY_MODEL
from tests.peer.test_gen1 import input_meaning
from tokenplace.errors import RemoteProtocolError, TokenplaceError
from tokenplace.operations import (
    CountRequest,
    Embeddings,
    EmbedRequest,
    Question,
    Reply,
    ScoreRequest,
    Scores,
)
from tokenplace.peer.request_map import RequestMap
from tokenplace.peer.whole import Answered, Part, WholeContents
from tokenplace.peer.wire import to_request

PATH = Path(__file__).resolve().parent.parent / "vectors" / "ops.json"
VECTORS = json.loads(PATH.read_text())


def question_of(vector: dict[str, Any]) -> Question:
    request = RequestMap(
        op=vector["op"],
        requires=(),
        epoch=bytes(8),
        resp_secret=bytes(32),
        reply_key=b"",
        artifact=TINY_MODEL,
        template="",
        cache_scope=bytes(16),
        seed=b"12345678",
        as_of="2026-03-01",
        attempt=0,
        hedge=False,
        resume=(),
        prompt_digest=b"",
        body=vector["body"].encode(),
    )
    question = to_request(request, "bucket")
    assert isinstance(question, Question)
    return question


def meaning(question: Question) -> dict[str, Any]:
    match question:
        case EmbedRequest():
            inputs = [x if isinstance(x, str) else list(x) for x in question.inputs]
            return {"inputs": inputs, "dimensions": question.dimensions}
        case CountRequest():
            return input_meaning(question.input)
        case ScoreRequest(replay=None):
            return {"ids": list(question.ids), "replay": None}
        case ScoreRequest(replay=replay):
            assert replay is not None
            assert replay.seed == b"12345678"
            shown = {"temperature": replay.sampling.temperature, "top_k": replay.sampling.top_k}
            return {"ids": list(question.ids), "replay": shown | {"choice": replay.choice}}


@pytest.mark.parametrize("vector", VECTORS["bodies"], ids=lambda v: f"{v['op']}: {v['name']}")
def test_bodies(vector: dict[str, Any]) -> None:
    if vector["expect"] == "success":
        assert meaning(question_of(vector)) == vector["means"]
        return
    with pytest.raises(TokenplaceError) as refusal:
        question_of(vector)
    assert refusal.value.code == vector["expect"]
    assert refusal.value.param == vector["param"]


def answer(vector: dict[str, Any]) -> Reply:
    contents, at = WholeContents(question_of(vector)), 0
    for part in map(bytes.fromhex, vector["parts"]):
        contents.take(Part(at, part))
        at += len(part)
    assert contents.reply is None
    contents.take(Answered(tuple(vector["n_tokens"])))
    assert contents.reply is not None
    return contents.reply


@pytest.mark.parametrize("vector", VECTORS["answers"], ids=lambda v: f"{v['op']}: {v['name']}")
def test_answers(vector: dict[str, Any]) -> None:
    if vector["expect"] != "success":
        with pytest.raises(RemoteProtocolError):
            answer(vector)
        return
    n_tokens = tuple(vector["n_tokens"])
    match answer(vector):
        case Embeddings() as embeddings:
            assert embeddings.n_tokens == n_tokens
            assert [each.hex() for each in embeddings.vectors] == vector["means"]
        case Scores() as scores:
            drawn = [[token_id] for token_id in scores.drawn] or [[] for _ in scores.tokens]
            shown = [
                [s.logprob, s.gap, s.rank, s.mass, *d]
                for s, d in zip(scores.tokens, drawn, strict=True)
            ]
            assert ((scores.n_prompt,), shown) == (n_tokens, vector["means"])
        case int(count):
            assert ((count,), []) == (n_tokens, vector["means"])
