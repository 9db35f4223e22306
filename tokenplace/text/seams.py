"""Texts that may lie over the seam between two pieces. Start at `possible_chars`. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def find_first(text: str, wanted: Sequence[str]) -> int | None:
    """Where the first of these in `text` begins, or None.

    The first is the one whose last character comes first; of several that end there, the longest.
    """
    found = [(begin + len(string), begin) for string in wanted if (begin := text.find(string)) >= 0]
    return min(found)[1] if found else None


def possible_chars(text: str, wanted: Sequence[str]) -> int:
    """How many characters at the end of `text` could still become one of these."""
    longest = 0
    for string in wanted:
        begin = text.find(string[0], max(0, len(text) - len(string) + 1))
        while begin >= 0 and len(text) - begin > longest:
            if string.startswith(text[begin:]):
                longest = len(text) - begin
                break
            begin = text.find(string[0], begin + 1)
    return longest
