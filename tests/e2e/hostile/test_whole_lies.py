"""Donors that lie to who asks them for vectors, over real libp2p: each is left in time with the
right error, and its stream is reset. Beside them an honest donor is asked for everything.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import pytest

from tests.answerers import FakeAnswerer, vector_of
from tests.e2e.hostile.lies import (
    ACCEPTED,
    ALIVE,
    REQUEUED,
    Lie,
    Told,
    finished,
    frame,
    repeats,
    tells,
)
from tests.e2e.hostile.lies import tokens as token
from tests.e2e.hostile.telling import Outcome, tell_all
from tests.peer.exchange_lab import TINY_MODEL
from tokenplace import defaults
from tokenplace.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DonorSilent,
    RemoteProtocolError,
)
from tokenplace.generation import TextInput
from tokenplace.operations import CountRequest, EmbedRequest, ScoreRequest
from tokenplace.peer.frames import Frame
from tokenplace.peer.requester import RemoteDonor
from tokenplace.peer.whole import Answered, Part, Taken

EMBED: Final = EmbedRequest("", ("one", "two"), 2, artifact=TINY_MODEL)
COUNT: Final = CountRequest("", TextInput("one two"), "2026-03-01", TINY_MODEL)
SCORE: Final = ScoreRequest(
    "", TextInput("one"), (4, 5), bytes(16), "2026-03-01", artifact=TINY_MODEL
)
BROKEN: Final = RemoteProtocolError
END: Final = Answered((1, 1))


def vectors(*numbers: float) -> Part:
    return Part(0, struct.pack(f"<{len(numbers)}f", *numbers))


RIGHT: Final = vectors(1, 0, 0, 1)


def ends(*frames: Frame) -> Lie:
    """The last frame in the final chunk, and then the stream's end, as it must be."""
    return tells(*frames, is_final=True, then="closes")


LIES: Final = (
    Told("silence: after taking it", tells(Taken()), DonorSilent),
    Told("silence: after a part", tells(Taken(), RIGHT), DonorSilent),
    Told("silence: after the end", tells(Taken(), RIGHT, END, is_final=True), DonorSilent),
    Told("delay: alive for ever", repeats(ALIVE, after=(Taken(),)), DeadlineExceeded),
    Told("delay: alive after a part", repeats(ALIVE, after=(Taken(), RIGHT)), DeadlineExceeded),
    Told("delay: unknown frames", repeats(frame(f="later"), after=(Taken(),)), DeadlineExceeded),
    Told("end: after taking it", tells(Taken(), then="closes"), ConnectionLost),
    Told("end: after a part", tells(Taken(), RIGHT, then="resets"), ConnectionLost),
    Told("end: in a chunk that is not final", tells(Taken(), RIGHT, END, then="closes"), BROKEN),
    Told("order: parts without taking it", ends(RIGHT, END), BROKEN),
    Told("order: the end alone", ends(END), BROKEN),
    Told("order: taken twice", tells(Taken(), Taken()), BROKEN),
    Told("order: alive first", tells(ALIVE), BROKEN),
    Told("order: requeued", tells(Taken(), REQUEUED), BROKEN),
    Told("order: accepted", tells(ACCEPTED), BROKEN),
    Told("order: tokens", tells(Taken(), token(0)), BROKEN),
    Told("order: finished", ends(Taken(), finished(0)), BROKEN),
    Told("order: a part behind the end", tells(Taken(), RIGHT, END, Part(16, b"x")), BROKEN),
    Told("parts: one that is empty", tells(Taken(), Part(0, b"")), BROKEN),
    Told("parts: a gap", tells(Taken(), Part(1, b"x")), BROKEN),
    Told("parts: an overlap", tells(Taken(), RIGHT, RIGHT), BROKEN),
    Told("parts: one byte too many", tells(Taken(), RIGHT, Part(16, b"x")), BROKEN),
    Told("vectors: none", ends(Taken(), END), BROKEN),
    Told("vectors: one of two", ends(Taken(), vectors(1, 0), END), BROKEN),
    Told("vectors: half a number", ends(Taken(), Part(0, bytes(15)), END), BROKEN),
    Told("vectors: NaN", ends(Taken(), vectors(1, 0, math.nan, 1), END), BROKEN),
    Told("vectors: zeros", ends(Taken(), vectors(1, 0, 0, 0), END), BROKEN),
    Told("vectors: endless", ends(Taken(), vectors(math.inf, 0, 0, 1), END), BROKEN),
    Told("counts: one of two", ends(Taken(), RIGHT, Answered((1,))), BROKEN),
    Told("counts: three", ends(Taken(), RIGHT, Answered((1,) * 3)), BROKEN),
)


async def _ask_liar(remote: RemoteDonor) -> None:
    await remote.embed(EMBED)


async def _ask_honestly(remote: RemoteDonor) -> None:
    """Of every kind, and vectors that take several chunks."""
    inputs = ("one", (2, 3), "three")
    request = EmbedRequest("", inputs, artifact=TINY_MODEL)
    expected = tuple(vector_of(given, defaults.MAX_EMBED_DIMENSIONS) for given in inputs)
    assert (await remote.embed(request)).vectors == expected
    assert await remote.count(COUNT) == len("one two")
    assert (await remote.score(SCORE)).n_prompt == len("one")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All lies, once."""
    model = FakeAnswerer(n_dimensions=defaults.MAX_EMBED_DIMENSIONS)
    return tell_all(LIES, model, _ask_liar, _ask_honestly)


@pytest.mark.parametrize("told", LIES, ids=[told.name for told in LIES])
def test_who_is_lied_to_leaves_with_the_right_error(
    told: Told, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[told.name]
    assert type(outcome.error) is told.ends_with
    assert outcome.is_left
    assert outcome.n_asked == 1
