"""`tokenplace chat`: talk to a model through the running peer's own API. Start at `run_chat`.

Only answers go to stdout; everything else a person sees goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from tokenplace.cli.control import ask_peer
from tokenplace.cli.output import CommandFailed, fail, say
from tokenplace.node.api_keys import read_api_keys

# The peer gives up on a silent donor long before this; it only guards against a peer that hangs.
ANSWER_TIMEOUT_S: Final = 120.0
PROMPT_SIGN: Final = "> "


class ChatFailed(CommandFailed):
    """The answer did not come, or not wholly; the text says why."""


def run_chat(home: Path, model: str, prompt: str | None, max_tokens: int | None) -> None:
    """Ask `prompt` and end, or talk until end of input.

    max_tokens: of each answer; None leaves it to the model and its context.
    """
    api = ask_peer(home, "/status")["api"]
    if api is None:
        fail("the running peer serves no API", "start it without --no-api")
    wish = {"model": model} if max_tokens is None else {"model": model, "max_tokens": max_tokens}
    with api_client(api["url"], api["key_file"]) as client:
        if prompt is None and sys.stdin.isatty():
            _converse(client, wish)
        else:
            _turn(client, wish, [], sys.stdin.read() if prompt is None else prompt)


def api_client(url: str, key_file: str | None) -> httpx.Client:
    """Speaks to the API; shows a key where it asks for one. Raises `ConfigError`."""
    headers = {}
    if key_file is not None:
        headers["authorization"] = f"Bearer {read_api_keys(Path(key_file))[0]}"
    # The peer is on this machine: no proxy is between, and no certificate is needed.
    return httpx.Client(
        base_url=url, headers=headers, timeout=ANSWER_TIMEOUT_S, trust_env=False, verify=False
    )


def _converse(client: httpx.Client, wish: Mapping[str, Any]) -> None:
    """Turn after turn until end of input, whatever becomes of each."""
    messages: list[dict[str, str]] = []
    say("Ctrl-C stops an answer, Ctrl-D ends the conversation.")
    while (line := _next_line()) is not None:
        if not line.strip():
            continue
        try:
            messages = _turn(client, wish, messages, line)
        except ChatFailed as error:
            say(f"error: {error}")
        except KeyboardInterrupt:
            say("(stopped)")


def _next_line() -> str | None:
    """What the person types next; None when they are done."""
    try:
        if sys.stdout.isatty():
            return input(PROMPT_SIGN)
        print(PROMPT_SIGN, end="", file=sys.stderr, flush=True)
        return input()
    except (EOFError, KeyboardInterrupt):
        say("")
        return None


def _turn(
    client: httpx.Client, wish: Mapping[str, Any], messages: list[dict[str, str]], text: str
) -> list[dict[str, str]]:
    """Ask the conversation with `text` added, print the answer as it comes; the conversation then.

    wish: parameters of the request besides its messages. Raises `ChatFailed`.
    """
    asked = [*messages, {"role": "user", "content": _valid(text)}]
    pieces = []
    try:
        for piece in _answer(client, {**wish, "messages": asked, "stream": True}):
            pieces.append(piece)
            print(piece, end="", flush=True)
    finally:
        if pieces:
            print(flush=True)
    return [*asked, {"role": "assistant", "content": "".join(pieces)}]


def _valid(text: str) -> str:
    """The text, if it is Unicode: a terminal or a pipe may hand over any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ChatFailed("the text is not valid UTF-8") from None
    return text


def _answer(client: httpx.Client, body: dict[str, Any]) -> Iterator[str]:
    """The pieces of an answer's text. Raises `ChatFailed`."""
    try:
        with client.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != 200:
                raise ChatFailed(json.loads(response.read())["error"]["message"])
            for event in _events(response):
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        yield piece
    except httpx.HTTPError as error:
        raise ChatFailed(f"the peer broke off ({type(error).__name__})") from error


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of an answer that comes whole. Raises `ChatFailed` if it does not."""
    for line in response.iter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ChatFailed(event["error"]["message"])
            yield event
    raise ChatFailed("the answer ended before it was whole")
