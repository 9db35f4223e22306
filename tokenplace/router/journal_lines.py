"""One line of the log for each attempt and each request that ended. Start at `log_attempt`.

The message is logfmt, `attempt request=… donor=… outcome=busy …`, and the record carries the same
as `fields`, for whoever writes the log in another form. The fields are fixed; numbers, ids and
words of closed lists alone, so no text of a prompt can be among them: nor the model's name as the
app wrote it, which may be anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tokenplace.router.attempts import Attempt

if TYPE_CHECKING:  # the journal writes these lines
    from tokenplace.router.journal import Record

Field = str | int | float | None
ATTEMPT_FIELDS: Final = (
    *("request", "number", "donor", "served", "outcome", "phase", "accepted_s", "first_token_s"),
    *("total_s", "n_tokens", "n_resumed", "why"),
)
REQUEST_FIELDS: Final = ("request", "kind", "outcome", "n_attempts", "n_tokens", "total_s")
FIELDS: Final = "fields"  # of a `logging.LogRecord`
EVENT: Final = "event"


def log_attempt(log: logging.Logger, attempt: Attempt) -> None:
    """Tell what became of asking a donor."""
    why = None if attempt.why is None else attempt.why.rule.value
    values = (
        *(attempt.request, attempt.number, attempt.donor, attempt.served, attempt.outcome),
        *(attempt.phase, attempt.accepted_s, attempt.first_token_s, attempt.total_s),
        *(attempt.n_tokens, attempt.n_resumed, why),
    )
    _log(log, "attempt", dict(zip(ATTEMPT_FIELDS, values, strict=True)))


def log_request(log: logging.Logger, record: Record, now: float) -> None:
    """Tell how a request ended."""
    values = (
        *(record.id, record.kind, record.outcome, record.n_attempts),
        *(record.n_tokens, record.total_s(now)),
    )
    _log(log, "request", dict(zip(REQUEST_FIELDS, values, strict=True)))


def _log(log: logging.Logger, event: str, fields: Mapping[str, Field]) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    exact = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in fields.items()
    }
    words = [f"{name}={value}" for name, value in exact.items() if value not in {None, ""}]
    log.info("%s", " ".join([event, *words]), extra={EVENT: event, FIELDS: exact})
