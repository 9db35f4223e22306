"""Things that mean nothing, sent so that who chokes on the unknown is found out early (RFC 8701's
idea). Start at `draw_pair`; what is reserved for it is in docs/protocol.md, section 3.

Pure but for the dice, which are an argument. Nothing here makes anything larger on the wire: grease
takes room that would have been padding, or it stays away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import msgpack

from tokenplace import defaults
from tokenplace.sealing.answer import padding_bytes

DICE: Final = random.SystemRandom()

PREFIX: Final = "~"  # no name of the protocol ever begins with it
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_FIXMAP: Final = 0x80  # msgpack: the first byte of a map of up to 15 keys, their number added
_FIXMAP_MOST: Final = 0x8F
_MAX_BYTES: Final = 16

_VALUES: Final[tuple[Callable[[random.Random], object], ...]] = (
    lambda dice: None,
    lambda dice: dice.random() < 0.5,
    lambda dice: dice.randrange(1 << 64),
    lambda dice: -dice.randrange(1 << 63),
    lambda dice: dice.random(),
    lambda dice: _name(dice),
    lambda dice: dice.randbytes(dice.randrange(_MAX_BYTES)),
    lambda dice: [dice.randrange(1 << 16), _name(dice), []],
    lambda dice: {_name(dice): {_name(dice): dice.randbytes(4)}},
)
"""One of every type of msgpack, nested ones too. At most 40 bytes."""


def draw_pair(dice: random.Random) -> tuple[str, object]:
    """A key that means nothing, and a value of any type, for a map of the protocol."""
    return _name(dice), dice.choice(_VALUES)(dice)


def with_unknown_key(fields: dict[str, object], dice: random.Random) -> dict[str, object]:
    """`fields` with one key more, somewhere among the others."""
    items = list(fields.items())
    items.insert(dice.randrange(len(items) + 1), draw_pair(dice))
    return dict(items)


def grease_chunk(frames: bytes, dice: random.Random, *, is_final: bool) -> bytes:
    """The frames of one chunk; now and then with an unknown frame behind them, or an unknown key in
    the first. Nothing comes before `accepted` or behind the end, and the chunk's size stays.
    """
    if not frames or dice.randrange(defaults.GREASED_CHUNKS):
        return frames
    name, value = draw_pair(dice)
    if is_final or dice.random() < 0.5:
        greased = _with_key(frames, name, value)
    else:
        greased = frames + bytes(msgpack.packb({"f": _name(dice), name: value}))
    return greased if len(greased) <= len(frames) + padding_bytes(len(frames)) else frames


def _with_key(frames: bytes, name: str, value: object) -> bytes:
    """The first frame's map gets one pair more, before the others."""
    if not _FIXMAP <= frames[0] < _FIXMAP_MOST:
        return frames
    pair = bytes(msgpack.packb(name)) + bytes(msgpack.packb(value))
    return bytes([frames[0] + 1]) + pair + frames[1:]


def _name(dice: random.Random) -> str:
    return PREFIX + "".join(dice.choices(_LETTERS, k=dice.randint(1, 8)))
