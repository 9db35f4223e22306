"""What is put around an answer before it is encoded. Start at `Envelope`."""

from __future__ import annotations

from typing import Protocol

from tokenplace.api_shim.form import Json


class Envelope(Protocol):
    """Made for one answer. Refusals never go through it."""

    def whole(self, answer: Json) -> Json:
        """The object of an answer that is not streamed."""

    def event(self, event: Json) -> Json:
        """One event of a stream; called in the order of the stream."""

    def error(self, error: Json) -> Json:
        """The event of a failure in mid-stream, which stays legible."""


class Open:
    """No envelope: answers as they are."""

    def whole(self, answer: Json) -> Json:
        """See `Envelope`."""
        return answer

    def event(self, event: Json) -> Json:
        """See `Envelope`."""
        return event

    def error(self, error: Json) -> Json:
        """See `Envelope`."""
        return error


OPEN = Open()
