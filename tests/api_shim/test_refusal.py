"""Errors as apps read them."""

from __future__ import annotations

import pytest

from tokenplace import errors
from tokenplace.api_shim.refusal import Refusal, refusal_of, refusal_of_status
from tokenplace.errors import ContextLengthExceeded, DonorBusy, TokenplaceError

ALL_ERRORS = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, TokenplaceError)
]


@pytest.mark.parametrize("error", ALL_ERRORS)
def test_every_error_has_openais_form(error: type[TokenplaceError]) -> None:
    refusal = refusal_of(error("Details.", hint="Do this.", param="model"))
    body = refusal.body["error"]
    assert refusal.status == error.http_status
    assert body["code"] == error.code.value
    assert body["param"] == "model"
    assert body["message"].endswith("Details. Do this.")
    assert body["type"] == ("invalid_request_error" if error.http_status < 500 else "server_error")
    assert ("retry-after" in refusal.headers) == (error.http_status == 503)


def test_time_to_retry_is_rounded_up() -> None:
    assert refusal_of(DonorBusy(retry_after_s=0.2)).headers == {"retry-after": "1"}
    assert refusal_of(DonorBusy(retry_after_s=2.1)).headers == {"retry-after": "3"}


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refusal(400, "No.", "no"), "invalid_request_error"),
        (Refusal(429, "Too often.", "rate_limit_exceeded"), "rate_limit_error"),
        (Refusal(503, "Not now.", "busy"), "server_error"),
        (Refusal(400, "No.", "no", kind="encryption_error"), "encryption_error"),
    ],
)
def test_the_type_goes_with_the_status_unless_it_is_said(refusal: Refusal, kind: str) -> None:
    assert refusal.body["error"]["type"] == kind


def test_our_error_is_found_among_others() -> None:
    group = ExceptionGroup("", [ValueError(), ExceptionGroup("", [ContextLengthExceeded()])])
    assert refusal_of(group).code == "context_length_exceeded"
    assert refusal_of(ExceptionGroup("", [ValueError("CANARY")])).code == "internal"


def test_headers_of_a_status_are_kept() -> None:
    assert refusal_of_status(405, {"allow": "GET"}).headers == {"allow": "GET"}
    assert refusal_of_status(418).body["error"]["message"]
