"""When it is refused, and that nothing else than a refusal can come of what is not sealed right."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from trio.testing import MockClock

from tests.api_shim.encrypted.client import Client, key_of, seal, seal_bytes
from tests.api_shim.encrypted.test_envelope import BROKEN, json_values
from tokenplace.api_shim.encrypted.completions import (
    CANNOT_OPEN,
    EncryptedCompletions,
    refusal_time,
)
from tokenplace.api_shim.encrypted.own_key import OwnKey
from tokenplace.api_shim.envelope import OPEN, Envelope
from tokenplace.api_shim.openai.bodies import ChatCompletionRequest
from tokenplace.api_shim.refusal import Refused
from tokenplace.defaults import API_SEALED_REFUSAL_STEP_S as STEP_S

MESSAGES = [{"role": "user", "content": "Hello, donors!"}]
CLIENT = Client(key_of().public_key())
BODY = CLIENT.body(MESSAGES, model="tiny-model")
HTTP = Request({"type": "http"})
ANSWER = Response()


class KnownKey(OwnKey):
    """The key that the client of these tests has."""

    async def get(self) -> Any:
        return key_of()


class Recorder:
    """Stands for the plain API."""

    def __init__(self) -> None:
        self.bodies: list[object] = []
        self.envelopes: list[Envelope] = []

    async def complete_chat(
        self, body: object, http: Request, envelope: Envelope = OPEN
    ) -> Response:
        self.bodies.append(body)
        self.envelopes.append(envelope)
        return ANSWER

    complete_text = complete_chat


def ask(body: object, verb: str = "complete_chat") -> tuple[Recorder, Refused | None, float]:
    """Ask once in virtual time: what reached the plain API, the refusal, and how long it took."""
    plain = Recorder()

    async def run() -> tuple[Refused | None, float]:
        start = trio.current_time()
        try:
            await getattr(EncryptedCompletions(plain, KnownKey()), verb)(body, HTTP)
        except Refused as refused:
            return refused, trio.current_time() - start
        return None, trio.current_time() - start

    return plain, *trio.run(run, clock=MockClock(autojump_threshold=0))


def test_what_is_opened_is_handed_on_at_once() -> None:
    plain, refused, took_s = ask(BODY)
    assert refused is None
    assert took_s == 0
    (asked,) = plain.bodies
    assert isinstance(asked, ChatCompletionRequest)
    assert [turn.content for turn in asked.messages] == ["Hello, donors!"]
    assert plain.envelopes != [OPEN]


def test_as_much_as_a_body_can_hold_is_opened() -> None:
    content = "🦙" * (3 << 18)  # 3 MiB, which base64 makes 4
    messages = seal_bytes(
        json.dumps([{"role": "user", "content": content}], ensure_ascii=False).encode(),
        CLIENT.peer_key,
    )
    plain, refused, _ = ask({**BODY, "messages": messages})
    assert refused is None
    (asked,) = plain.bodies
    assert isinstance(asked, ChatCompletionRequest)
    assert asked.messages[0].content == content


def test_what_is_in_clear_is_handed_on_as_it_is() -> None:
    body = {"model": "tiny-model", "messages": MESSAGES}
    plain, _, took_s = ask({**body, "encrypted": False})
    assert (plain.bodies, plain.envelopes, took_s) == ([body], [OPEN], 0)


@pytest.mark.parametrize("messages", [*BROKEN.values(), seal({}, CLIENT.peer_key)])
def test_a_refusal_waits_for_the_next_step(messages: object) -> None:
    plain, refused, took_s = ask({**BODY, "messages": messages})
    assert refused is not None
    assert refused.refusal is CANNOT_OPEN
    assert took_s == pytest.approx(STEP_S)
    assert plain.bodies == []


@pytest.mark.parametrize("client_key", [None, "", 7, "llama"])
def test_a_bad_client_key_waits_too(client_key: object) -> None:
    _, refused, took_s = ask({**BODY, "client_public_key": client_key})
    assert refused is not None
    assert refused.refusal is CANNOT_OPEN
    assert took_s == pytest.approx(STEP_S)


def test_what_stands_outside_is_refused_without_opening_anything() -> None:
    _, refused, took_s = ask({**BODY, "temperature": 3})
    assert refused is not None
    assert refused.refusal.param == "temperature"
    assert took_s == 0


@given(began=st.floats(0, 1e6), took_s=st.floats(0, 100))
def test_refusals_leave_at_fixed_times(began: float, took_s: float) -> None:
    leaves = refusal_time(began, began + took_s)
    n_steps = (leaves - began) / STEP_S
    assert n_steps == pytest.approx(round(n_steps), abs=1e-3)
    assert round(n_steps) >= 1
    assert began + took_s - 1e-6 <= leaves <= began + took_s + STEP_S + 1e-6


parts = json_values | st.text(alphabet="ABab01+/=\n-", max_size=400) | st.just("A" * 344)
envelopes: st.SearchStrategy[object] = st.one_of(
    json_values,
    st.fixed_dictionaries({}, optional={name: parts for name in BODY["messages"]}),
    st.builds(lambda name, part: {**BODY["messages"], name: part}, st.sampled_from(
        sorted(BODY["messages"])), parts),
    st.builds(lambda data: seal_bytes(data, CLIENT.peer_key), st.binary(max_size=100)),
    st.builds(lambda value: seal(value, CLIENT.peer_key), json_values),
)  # fmt: skip
wrong_bodies = st.one_of(
    st.builds(lambda envelope: {**BODY, "messages": envelope}, envelopes),
    st.builds(lambda key: {**BODY, "client_public_key": key}, json_values),
    st.builds(
        lambda envelope, key: {**BODY, "messages": envelope, "client_public_key": key},
        envelopes,
        json_values,
    ),
)


def is_one_refusal(body: object, verb: str) -> bool:
    plain, refused, took_s = ask(body, verb)
    is_late = took_s == pytest.approx(STEP_S)
    return plain.bodies == [] and refused is not None and refused.refusal is CANNOT_OPEN and is_late


@settings(max_examples=200)
@given(body=wrong_bodies)
def test_nothing_wrong_in_a_chat_gives_another_answer(body: dict[str, Any]) -> None:
    assert is_one_refusal(body, "complete_chat")


@settings(max_examples=50)
@given(envelope=envelopes, key=json_values)
def test_nothing_wrong_in_a_completion_gives_another_answer(envelope: object, key: object) -> None:
    body = {**BODY, "messages": envelope, "client_public_key": key}
    assert is_one_refusal(body, "complete_text")


@settings(max_examples=100)
@given(body=json_values | st.builds(lambda more: {**BODY, **more}, st.dictionaries(
    st.sampled_from(["model", "stream", "encrypted", "temperature", "prompt", "tools", "\ud800"])
    | st.text(), json_values, max_size=3)))  # fmt: skip
def test_any_body_is_answered_or_refused(body: object) -> None:
    plain, refused, _ = ask(body)
    assert (refused is None) == (len(plain.bodies) == 1)
    assert refused is None or 400 <= refused.refusal.status < 500
