"""Names, pins, wishes and tools, from an app to the donors of a real network."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.e2e.network import MODEL, Network
from tokenplace.models.catalogue import DEFAULT_MODEL

pytestmark = pytest.mark.slow
PIN = f"{MODEL}@sha256:{DEFAULT_MODEL.artifact[:12]}"
TOOL: Any = {"type": "function", "function": {"name": "look_up", "parameters": {}}}


def ask(client: openai.OpenAI, model: str = MODEL, **more: Any) -> Any:
    return client.completions.with_raw_response.create(
        model=model, prompt="One, two,", max_tokens=2, **more
    )


@pytest.mark.parametrize("name", [PIN, "auto", "gpt-4o-mini", MODEL])
def test_the_answer_repeats_the_name_and_the_header_says_what_served(
    client: openai.OpenAI, name: str
) -> None:
    raw = ask(client, name)
    assert raw.parse().model == name
    assert raw.headers["x-tokenplace-model"] == PIN


def test_a_pin_of_other_bytes_is_answered_by_nobody(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, f"{MODEL}@sha256:{'0' * 12}")
    assert caught.value.status_code == 503
    assert caught.value.code in ("no_donor_for_model", "search_incomplete")


def test_an_unknown_name_is_told_how_to_become_one(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tokenplace models alias nobodys-model auto"):
        ask(client, "nobodys-model")


def test_donors_are_chosen_as_wished(client: openai.OpenAI, network: Network) -> None:
    first, second = (network.status(donor)["peer_id"] for donor in network.donors)
    for wished in (
        {"only": [first]},
        {"ignore": [second]},
        {"order": [first, second]},
        {"order": [first], "allow_fallbacks": False},
        {"only": [first], "quantizations": [DEFAULT_MODEL.quantization]},
    ):
        raw = ask(client, extra_body={"provider": wished})
        assert raw.headers["x-tokenplace-accepted-by"] == first, wished


def test_wishes_that_leave_nobody_are_named(client: openai.OpenAI, network: Network) -> None:
    first = network.status(network.donors[0])["peer_id"]
    wished = {"ignore": [first], "quantizations": ["Q8_0"]}
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, extra_body={"provider": wished})
    assert (caught.value.status_code, caught.value.code) == (503, "no_donor_for_model")
    assert "`ignore` excludes 1, `quantizations` excludes 1" in caught.value.message


def test_tools_are_not_for_strangers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="tokenplace peer trust") as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello!"}], tools=[TOOL]
        )
    assert caught.value.code == "untrusted_donor_tools"
