"""The router and its stop over fake models, for answers that come whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from tests.answerers import FakeAnswerer, vector_of
from tests.router.given import GivenRouter, GivenRoutes, route_to
from tokenplace.errors import (
    ConnectionLost,
    ContextLengthExceeded,
    DonorBusy,
    InvalidRequest,
    NoDonorForModel,
    PeerStopping,
    TokenplaceError,
    Unsupported,
)
from tokenplace.features import Feature
from tokenplace.generation import ChatInput, ChatMessage, IdsInput, TextInput, Wishes
from tokenplace.operations import (
    CountRequest,
    EmbedRequest,
    Question,
    ScoreRequest,
    ask,
)
from tokenplace.router.demand import Demand, screen
from tokenplace.router.policy import Candidate
from tokenplace.router.route import Route
from tokenplace.router.stoppable import Stoppable
from tokenplace.router.trust import NO_TRUST

ARTIFACT, TEMPLATE = "a" * 64, "b" * 64
EMBED = EmbedRequest("minilm", ("one", (2, 3)))
CHAT = ChatInput((ChatMessage("user", "one two"),))
COUNT = CountRequest("tiny", CHAT, "2026-03-01")
SCORE = ScoreRequest("tiny", TextInput("one"), (4, 5), bytes(16), "2026-03-01")
QUESTIONS = [EMBED, COUNT, SCORE]
IDS = ["embed", "count", "score"]


def model(**changes: object) -> FakeAnswerer:
    return FakeAnswerer(**changes)  # type: ignore[arg-type]


def failing(error: TokenplaceError) -> FakeAnswerer:
    return FakeAnswerer(fail_after=0, error=error)


class FixedRoutes(GivenRoutes):
    """Routes to fake models, in order of preference, all with these features."""

    def __init__(
        self, models: Sequence[FakeAnswerer], features: tuple[str, ...] = (Feature.CHAT,)
    ) -> None:
        super().__init__()
        self.models = models
        self.features = features

    def given(self, demand: Demand) -> Sequence[Route]:
        routes = [self.route(number) for number in range(len(self.models))]
        passed = screen([route.candidate for route in routes], demand, NO_TRUST)
        return [route for route in routes if route.candidate in passed]

    def route(self, number: int) -> Route:
        candidate = Candidate(
            donor=f"donor-{number}",
            artifact=ARTIFACT,
            template=TEMPLATE,
            rank=number,
            queue=0,
            prefill_tps=100.0,
            decode_tps=10.0,
            rtt_s=0.01,
            is_accepting=True,
            name="minilm",
            features=self.features,
        )
        return route_to(candidate, self.models[number])


def router_over(question: Question, *models: FakeAnswerer) -> tuple[GivenRouter, FixedRoutes]:
    is_embedding = isinstance(question, EmbedRequest)
    routes = FixedRoutes(models, (Feature.EMBEDDINGS if is_embedding else Feature.CHAT,))
    return GivenRouter(routes), routes


async def test_vectors_come_from_who_makes_them() -> None:
    alice = model()
    router, _ = router_over(EMBED, alice)
    answer = await router.embed(EMBED)
    assert answer.vectors == tuple(vector_of(given, 8) for given in EMBED.inputs)
    assert answer.served == f"minilm@sha256:{ARTIFACT[:12]}"
    assert alice.questions == [replace(EMBED, artifact=ARTIFACT)]
    (attempt,) = router.attempts
    assert (attempt.model, attempt.donor, attempt.number) == ("minilm", "donor-0", 0)
    assert (attempt.outcome, attempt.n_tokens, attempt.first_token_s) == ("finished", 0, None)


async def test_a_chat_is_counted_with_the_donors_template_and_raw_text_without() -> None:
    alice = model()
    router, _ = router_over(COUNT, alice)
    assert await router.count(COUNT) == len("one two")
    assert await router.count(replace(COUNT, input=IdsInput((1, 2, 3)))) == 3
    assert (await router.score(SCORE)).n_prompt == len("one")
    assert [getattr(asked, "template") for asked in alice.questions] == [TEMPLATE, "", ""]  # noqa: B009


@pytest.mark.parametrize("question", QUESTIONS, ids=IDS)
@pytest.mark.parametrize("error", [DonorBusy(), ConnectionLost(), Unsupported("score")])
async def test_another_donor_is_asked(question: Question, error: TokenplaceError) -> None:
    alice, bob = failing(error), model()
    router, routes = router_over(question, alice, bob)
    await ask(router, question)
    assert (len(alice.questions), len(bob.questions)) == (1, 1)
    # Who may be gone is doubted; of answers that were bad the router keeps count itself.
    doubted = [("donor-0", error)] if isinstance(error, ConnectionLost) else []
    assert routes.failures == doubted
    assert [a.outcome for a in router.attempts] == [error.code, "finished"]
    assert [a.number for a in router.attempts] == [0, 1]


@pytest.mark.parametrize("question", QUESTIONS, ids=IDS)
async def test_what_the_app_got_wrong_is_told_at_once(question: Question) -> None:
    bob = model()
    router, _ = router_over(question, failing(ContextLengthExceeded()), bob)
    with pytest.raises(ContextLengthExceeded):
        await ask(router, question)
    assert bob.questions == []


async def test_three_donors_are_asked_and_no_more() -> None:
    models = [failing(DonorBusy()) for _ in range(4)]
    router, _ = router_over(EMBED, *models)
    with pytest.raises(DonorBusy):
        await router.embed(EMBED)
    assert [len(each.questions) for each in models] == [1, 1, 1, 0]


async def test_nobody_is_no_answer() -> None:
    router, _ = router_over(EMBED)
    with pytest.raises(NoDonorForModel):
        await router.embed(EMBED)


@pytest.mark.parametrize(
    ("question", "features"),
    [(EMBED, (Feature.CHAT,)), (SCORE, (Feature.EMBEDDINGS,)), (COUNT, (Feature.EMBEDDINGS,))],
    ids=IDS,
)
async def test_a_model_of_the_other_kind_is_refused_by_name(
    question: Question, features: tuple[str, ...]
) -> None:
    alice = model()
    router = GivenRouter(FixedRoutes([alice], features))
    with pytest.raises(InvalidRequest, match="minilm"):
        await ask(router, question)
    assert alice.questions == []


async def test_wishes_hold_for_vectors_too() -> None:
    alice, bob = model(), model()
    router, _ = router_over(EMBED, alice, bob)
    await router.embed(replace(EMBED, wishes=Wishes(only=("donor-1",))))
    assert (len(alice.questions), len(bob.questions)) == (0, 1)


async def test_an_app_that_leaves_is_remembered_as_such(autojump_clock: MockClock) -> None:
    alice = model(work_s=60.0)
    router, _ = router_over(EMBED, alice)
    with trio.move_on_after(5):
        await router.embed(EMBED)
    assert alice.n_cancelled == 1
    assert [a.outcome for a in router.attempts] == ["cancelled"]


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("question", QUESTIONS, ids=IDS)
async def test_an_answer_passes_the_stop_unchanged(question: Question) -> None:
    router, _ = router_over(question, model())
    assert await ask(Stoppable(router), question) == await ask(router, question)


@pytest.mark.parametrize("question", QUESTIONS, ids=IDS)
async def test_what_waits_is_told_that_the_peer_stops(
    question: Question, autojump_clock: MockClock
) -> None:
    alice = model(work_s=60.0)
    router, _ = router_over(question, alice)
    apps = Stoppable(router)

    async def expect_stopping() -> None:
        with pytest.raises(PeerStopping):
            await ask(apps, question)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_stopping)
        await trio.sleep(1)
        await apps.finish()
    assert alice.n_cancelled == 1
    await expect_stopping()
    assert len(alice.questions) == 1, "nothing new begins"
