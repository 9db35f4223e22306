"""A request as one candidate is asked it, and its answer as an app is told of it. Pure."""

from __future__ import annotations

import dataclasses

from tokenplace.generation import Accepted, ChatInput, Event, GenerateRequest
from tokenplace.operations import EmbedRequest, Question
from tokenplace.router.policy import Candidate


def request_to(
    candidate: Candidate, request: GenerateRequest, number: int, *, is_hedge: bool
) -> GenerateRequest:
    """The request as this candidate is asked it; raw text needs no template."""
    template = candidate.template if isinstance(request.input, ChatInput) else ""
    return dataclasses.replace(
        request,
        artifact=candidate.artifact,
        template=template,
        attempt=number,
        is_hedge=is_hedge,
    )


def question_to(candidate: Candidate, question: Question) -> Question:
    """The question as this candidate is asked it."""
    if isinstance(question, EmbedRequest):
        return dataclasses.replace(question, artifact=candidate.artifact)
    template = candidate.template if isinstance(question.input, ChatInput) else ""
    return dataclasses.replace(question, artifact=candidate.artifact, template=template)


def served(event: Event, candidate: Candidate) -> Event:
    """`Accepted` says what answers."""
    if isinstance(event, Accepted):
        return dataclasses.replace(event, served=candidate.served)
    return event


def are_twins(one: Candidate, other: Candidate) -> bool:
    """Do they give the same answer to the same request?"""
    return one.artifact == other.artifact and one.template == other.template
