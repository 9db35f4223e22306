"""What a donor can say in well-sealed chunks that it must not. Start at `FRAMES`."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.e2e.hostile.lies import (
    ACCEPTED,
    BROKEN,
    DEEP,
    MAX_NEW,
    N_CHOICES,
    N_TOP,
    LiarsEnd,
    Told,
    finished,
    frame,
    tells,
    tokens,
)
from tokenplace.errors import DonorInternalError
from tokenplace.generation import Accepted, GrammarStop
from tokenplace.sealing.answer import MAX_FRAMES_BYTES

BEGUN: Final = (tokens(0), tokens(0, choice=1))
LIKELY_DEEP: Final = b"\x82\xa1f\xa6tokens\xa8logprobs" + DEEP


def with_logprobs(*logprobs: object) -> bytes:
    """Two tokens and what is said to be their log-probabilities."""
    return frame(f="tokens", choice=0, index=0, ids=[1, 1], bytes=[b"x", b"x"], logprobs=logprobs)


async def tells_too_much(end: LiarsEnd) -> None:
    """Few tokens, of very many bytes."""
    await tells(ACCEPTED)(end)
    for index in range(MAX_NEW):
        await end.tell(tokens(index, piece=bytes(MAX_FRAMES_BYTES - 200)))


async def tells_too_many_likely(end: LiarsEnd) -> None:
    """Few tokens, of few bytes, but with long likely ones."""
    await tells(ACCEPTED)(end)
    for choice in range(N_CHOICES):
        for index in range(MAX_NEW):
            likely = tokens(index, piece=bytes(4000), choice=choice, n_top=N_TOP)
            await end.tell(replace(likely, pieces=(b"x",)))


FRAMES: Final = (
    Told("frames: no msgpack", tells(b"\xc1"), BROKEN),
    Told("frames: a list in a list in a list", tells(DEEP), BROKEN),
    Told("frames: a deep value", tells(b"\x82\xa1f\xa5later\xa1x" + DEEP), BROKEN),
    Told("frames: a map of 4 billion", tells(b"\xdf\xff\xff\xff\xff"), BROKEN),
    Told("frames: 4 GiB of text", tells(b"\x81\xa1f\xdb\xff\xff\xff\xff"), BROKEN),
    Told("frames: without a name", tells(frame(x=1)), BROKEN),
    Told("frames: tokens before yes", tells(tokens(0)), BROKEN),
    Told("frames: the end before yes", tells(finished(0, 1), is_final=True, then="closes"), BROKEN),
    Told("frames: yes twice", tells(ACCEPTED, ACCEPTED), BROKEN),
    Told(
        "frames: yes to more than was asked",
        tells(Accepted(bytes(32), 3, 0, 4096, MAX_NEW + 1, "tp/1", 0, 0, "")),
        BROKEN,
    ),
    Told("frames: a gap", tells(ACCEPTED, tokens(1)), BROKEN),
    Told("frames: an overlap", tells(ACCEPTED, tokens(0), tokens(0)), BROKEN),
    Told("frames: a choice nobody asked for", tells(ACCEPTED, tokens(0, choice=2)), BROKEN),
    Told("frames: a gap in the other choice", tells(ACCEPTED, *BEGUN, tokens(2, choice=1)), BROKEN),
    Told(
        "frames: a token too many of the other choice",
        tells(ACCEPTED, *BEGUN, tokens(1, n=MAX_NEW, choice=1)),
        BROKEN,
    ),
    Told("frames: no tokens", tells(ACCEPTED, tokens(0, n=0)), BROKEN),
    Told("frames: a token too many", tells(ACCEPTED, tokens(0, n=MAX_NEW + 1)), BROKEN),
    Told(
        "frames: bytes without ids",
        tells(ACCEPTED, frame(f="tokens", choice=0, index=0, ids=[1], bytes=[b"x", b"y"])),
        BROKEN,
    ),
    Told(
        "frames: an id of 2³²",
        tells(ACCEPTED, frame(f="tokens", choice=0, index=0, ids=[1 << 32], bytes=[b"x"])),
        BROKEN,
    ),
    Told("frames: more bytes than an answer may have", tells_too_much, BROKEN),
    *(
        Told(
            f"frames: the end of {name}", tells(ACCEPTED, end, is_final=True, then="closes"), BROKEN
        )
        for name, end in (
            ("no choice", finished()),
            ("one choice of two", finished(1)),
            ("a third choice", finished(0, 1, 2)),
            ("one choice twice", finished(0, 1, 1)),
            ("a form that nobody asked for", finished(0, 1, stop=GrammarStop())),
        )
    ),
    *(
        Told(f"logprobs: {name}", tells(ACCEPTED, likely), BROKEN)
        for name, likely in (
            ("none", tokens(0, n_top=None)),
            ("one for two tokens", with_logprobs([-0.5, []])),
            ("more than were asked for", tokens(0, n_top=N_TOP + 1)),
            ("more than there may be", with_logprobs(*[[-0.5, [[1, b"", -0.5]] * 500]] * 2)),
            ("not a number", with_logprobs(*[[float("nan"), []]] * 2)),
            ("minus infinity", with_logprobs(*[[-0.5, [[1, b"x", float("-inf")]]]] * 2)),
            ("more than certain", with_logprobs(*[[0.5, []]] * 2)),
            ("of text", with_logprobs(*[["-0.5", []]] * 2)),
            ("a list in a list in a list", LIKELY_DEEP),
        )
    ),
    Told("logprobs: more bytes than an answer may have", tells_too_many_likely, BROKEN),
    Told("frames: the end before the final chunk", tells(ACCEPTED, finished(0, 1)), BROKEN),
    Told(
        "frames: a final chunk without the end",
        tells(ACCEPTED, is_final=True, then="closes"),
        BROKEN,
    ),
    Told(
        "frames: an error without a code",
        tells(frame(f="error"), is_final=True, then="closes"),
        BROKEN,
    ),
    Told(
        "frames: an error nobody knows",
        tells(
            frame(f="error", code="mood", scope="donor", retry_elsewhere=True, message="x"),
            is_final=True,
            then="closes",
        ),
        DonorInternalError,
    ),
    Told(
        "frames: an error of 10,000 words",
        tells(
            frame(f="error", code="busy", scope="donor", retry_elsewhere=True, message="x " * 7000),
            is_final=True,
            then="closes",
        ),
        BROKEN,
    ),
)
