"""A request's body as a whole, and the prompt in it (docs/protocol.md, section 7). Start at
`input_fields` and `read_input`.

Pure, and the same for every operation. Differs from OpenAI's bodies: token ids cross as one text,
because of numbers by the hundred thousand JSON makes a list that takes long to read.
"""

from __future__ import annotations

import json
from typing import Any, Final

from tokenplace import defaults
from tokenplace.errors import InvalidRequest, RequestTooBig
from tokenplace.generation import ChatInput, IdsInput, Input, TextInput
from tokenplace.peer.gen1_chat import CHAT_FIELDS, chat_fields, read_chat
from tokenplace.peer.gen1_fields import JsonReader, ids, ids_text, is_text

MAX_DEPTH: Final = 16
_PROMPTS: Final = ("messages", "prompt", "prompt_ids")


def to_json(fields: dict[str, object]) -> bytes:
    """Raises `RequestTooBig` over `MAX_BODY_BYTES` and `InvalidRequest` for text or numbers that
    JSON cannot hold.
    """
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        body = text.encode()
    except ValueError:  # its message would quote the text
        raise InvalidRequest("text must be valid Unicode and numbers finite") from None
    if len(body) > defaults.MAX_BODY_BYTES:
        raise RequestTooBig
    return body


def read_json(body: bytes) -> tuple[dict[str, Any], JsonReader]:
    """The fields, and what reads the JSON inside them under the same limits. Raises
    `RequestTooBig`, or `InvalidRequest`.
    """
    if len(body) > defaults.MAX_BODY_BYTES:
        raise RequestTooBig
    reader = JsonReader()
    return reader.read(body, MAX_DEPTH, what="the body"), reader


def input_fields(asked: Input) -> dict[str, object]:
    """The body's fields for a prompt. Raises `InvalidRequest` for ids that are none."""
    match asked:
        case ChatInput():
            return chat_fields(asked)
        case TextInput(prompt):
            return {"prompt": prompt}
        case IdsInput():
            return {"prompt_ids": ids_text(asked.ids, "prompt_ids")}


def read_input(fields: dict[str, Any], reader: JsonReader) -> Input:
    """Raises `InvalidRequest`."""
    if sum(name in fields for name in _PROMPTS) != 1:
        reason = "exactly one of messages, prompt and prompt_ids is needed"
        raise InvalidRequest(reason, param="messages")
    if "messages" in fields:
        return read_chat(fields, reader)
    for name in CHAT_FIELDS:
        if name in fields:
            raise InvalidRequest(f"{name} needs messages", param=name)
    if "prompt_ids" in fields:
        return IdsInput(ids(fields["prompt_ids"], defaults.MAX_PROMPT_IDS, param="prompt_ids"))
    prompt = fields["prompt"]
    if not is_text(prompt) or not prompt:
        raise InvalidRequest("prompt must be text and not empty", param="prompt")
    return TextInput(prompt)
