"""How names, pins, aliases and artifacts are written (docs/protocol.md, section 2). Pure."""

from __future__ import annotations

import re
from typing import Final

AUTO: Final = "auto"
"""Stands for the best model that the network offers now. Nothing else may be called so."""

MAX_NAME_CHARS: Final = 64
PIN_HEX_DIGITS: Final = 12
"""Of an artifact, in the pins that are shown to people."""

_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}")
_PIN = re.compile(rf"(?P<name>[^@]+)@sha256:(?P<prefix>[0-9a-f]{{{PIN_HEX_DIGITS},64}})")
# Aliases never leave this machine, so they may look like what programs send: openai/gpt-4o,
# llama3:8b.
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_model_name(text: str) -> bool:
    """May a model be called so?"""
    return text != AUTO and _NAME.fullmatch(text) is not None


def parse_pin(text: str) -> tuple[str, str] | None:
    """`name@sha256:HEX` → (name, first 12 to 64 hex digits of the artifact); None for others."""
    found = _PIN.fullmatch(text)
    return (found["name"], found["prefix"]) if found and is_model_name(found["name"]) else None


def is_alias(text: str) -> bool:
    """May an alias be called so?"""
    return text != AUTO and _ALIAS.fullmatch(text) is not None


def is_target(text: str) -> bool:
    """May an alias stand for this: `auto`, a model's name, or a pin?"""
    return text == AUTO or is_model_name(text) or parse_pin(text) is not None


def is_sha256(text: str) -> bool:
    """Is it 64 lower-case hex digits?"""
    return _SHA256.fullmatch(text) is not None
