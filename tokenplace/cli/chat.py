"""`tokenplace chat`: talk to a model through the running peer's own API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import httpx

from tokenplace.cli.control import ask_peer
from tokenplace.cli.output import fail, say

# The peer gives up on a silent donor long before this; it only guards against a peer that hangs.
ANSWER_TIMEOUT_S: Final = 120.0


class ChatFailed(Exception):
    """The answer did not come, or not wholly; the text says why."""


def run_chat(home: Path, model: str, prompt: str | None) -> None:
    """Ask `prompt` and end, or talk until end of input."""
    api = ask_peer(home, "/status")["api"]
    if api is None:
        fail("the running peer serves no API", "start it without --no-api")
    messages: list[dict[str, str]] = []
    try:
        if prompt is not None or not sys.stdin.isatty():
            _turn(api["url"], model, messages, prompt if prompt is not None else sys.stdin.read())
            return
        say("Ctrl-D ends the conversation.")
        while True:
            try:
                line = input("> ")
            except EOFError:
                return
            if line.strip():
                _talk(api["url"], model, messages, line)
    except ChatFailed as error:
        fail(str(error))
    except KeyboardInterrupt:
        say("")


def _talk(api: str, model: str, messages: list[dict[str, str]], line: str) -> None:
    """One turn of a conversation that goes on whatever becomes of the turn."""
    try:
        _turn(api, model, messages, line)
    except ChatFailed as error:
        messages.pop()
        say(f"error: {error}")
    except KeyboardInterrupt:
        messages.pop()
        say("\n(stopped)")


def _turn(api: str, model: str, messages: list[dict[str, str]], text: str) -> None:
    """Send the conversation with `text` added, print the answer as it comes, remember it."""
    messages.append({"role": "user", "content": text})
    body = {"model": model, "messages": messages, "stream": True}
    answer = []
    try:
        with httpx.stream(
            "POST", f"{api}/chat/completions", json=body, timeout=ANSWER_TIMEOUT_S
        ) as response:
            if response.status_code != 200:
                raise ChatFailed(json.loads(response.read())["error"]["message"])
            for event in _events(response):
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        answer.append(piece)
                        print(piece, end="", flush=True)
    except httpx.HTTPError as error:
        raise ChatFailed(f"the peer broke off ({type(error).__name__})") from error
    finally:
        print(flush=True)
    messages.append({"role": "assistant", "content": "".join(answer)})


def _events(response: httpx.Response) -> Any:
    """The events of an answer; raises `ChatFailed` for an error event."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ChatFailed(event["error"]["message"])
            yield event
