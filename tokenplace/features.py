"""Names for what a model at a donor can do, and for what a request needs it to understand. Start at
`Requirement`.

Two lists, because they differ: an offer says little, so that it stays small, and a request says
everything that an older donor would pass over without a word.
"""

from __future__ import annotations

from enum import StrEnum


class Feature(StrEnum):
    """What an offer says of one model (docs/protocol.md, section 3). Donors may name others."""

    CHAT = "chat"
    TOOLS = "tools"
    GRAMMAR = "grammar"
    EMBEDDINGS = "embeddings"


class Requirement(StrEnum):
    """What `requires` may name (docs/protocol.md, section 4)."""

    CHOICES = "choices"
    GRAMMAR = "grammar"
    LOGPROBS = "logprobs"
    PENALTIES = "penalties"
    PROMPT_IDS = "prompt_ids"
    RESUME = "resume"
    TOOLS = "tools"
