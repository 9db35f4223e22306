"""Makes an HTTP response of requests and a dialect's form. Start at `Responder.respond`.

The one place where requests of apps run, whatever their dialect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response

from tokenplace.api_shim.answer import Answers
from tokenplace.api_shim.envelope import OPEN, Envelope
from tokenplace.api_shim.form import AnswerForm, WholeChoice
from tokenplace.api_shim.history import History
from tokenplace.api_shim.logprobs import TokenLogprob
from tokenplace.api_shim.sse import EventStream, served_headers
from tokenplace.api_shim.together import open_parts
from tokenplace.generation import GenerateRequest, Generator
from tokenplace.router.journal import Journal
from tokenplace.text.deltas import Delta


@dataclass(frozen=True, slots=True)
class Responder:
    """journal: where it is written what became of requests. hold_s: seconds that a stream's headers
    wait for a donor. keepalive_s: seconds of silence after which a stream says why it waits.
    """

    generator: Generator
    journal: Journal
    hold_s: float
    keepalive_s: float

    async def respond(
        self,
        requests: Sequence[GenerateRequest],
        form: AnswerForm,
        envelope: Envelope = OPEN,
    ) -> Response:
        """Run the requests, all streamed or none, and answer with all their choices in one answer.

        An answer that is not streamed is complete when this returns, and failures are raised. A
        stream runs when the response is sent.
        """
        answers = Answers(requests)
        history = History(self.journal, requests[0].id)
        if requests[0].streamed:
            return EventStream(
                self.generator, answers, form, envelope, history, self.hold_s, self.keepalive_s
            )
        deltas: list[list[Delta]] = [[] for _ in range(answers.n_choices)]
        logprobs: list[list[TokenLogprob]] = [[] for _ in range(answers.n_choices)]
        async with open_parts(self.generator, answers.each) as all_parts:
            async for parts in all_parts:
                for part in parts:
                    deltas[part.choice] += part.deltas
                    logprobs[part.choice] += part.logprobs
        choices = list(map(WholeChoice, deltas, logprobs, answers.require_end()))
        whole = envelope.whole(form.whole(choices, answers.usage))
        served = served_headers(answers.accepted_by, answers.served)
        headers = {**served, **history.headers(is_over=True)}
        return JSONResponse(whole, headers=headers)
