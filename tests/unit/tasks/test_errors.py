"""The table "Which errors are what" of the Stage 1 contract, row by row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import CLASS_BY_CODE, ErrorClass, classify

TRANSIENT, PERMANENT, RUN_STOPPING = (
    ErrorClass.TRANSIENT,
    ErrorClass.PERMANENT,
    ErrorClass.RUN_STOPPING,
)


@pytest.mark.parametrize(
    ("status", "body_code", "has_retry_after", "expected"),
    [
        (200, "TIMEOUT", False, ("TIMEOUT", TRANSIENT)),
        (200, "CONNECTION_ERROR", False, ("CONNECTION_ERROR", TRANSIENT)),
        (200, "SERVER_ERROR", False, ("SERVER_ERROR", TRANSIENT)),
        (200, "TEMPORARY_UNAVAILABLE", False, ("TEMPORARY_UNAVAILABLE", TRANSIENT)),
        (500, None, False, ("SERVER_ERROR", TRANSIENT)),
        (503, None, True, ("SERVER_ERROR", TRANSIENT)),
        (599, "SOMETHING_NEW", False, ("SERVER_ERROR", TRANSIENT)),
        (429, None, True, ("HTTP_429", TRANSIENT)),
        (429, None, False, ("HTTP_429", PERMANENT)),
        (200, "NOT_FOUND", False, ("NOT_FOUND", PERMANENT)),
        (200, "VALIDATION_ERROR", False, ("VALIDATION_ERROR", PERMANENT)),
        (200, "UNEXPECTED_RESPONSE", False, ("UNEXPECTED_RESPONSE", PERMANENT)),
        (200, "SOMETHING_NEW", False, ("SOMETHING_NEW", PERMANENT)),
        (200, None, False, ("UNEXPECTED_RESPONSE", PERMANENT)),
        (302, None, False, ("UNEXPECTED_RESPONSE", PERMANENT)),
        (404, None, False, ("HTTP_404", PERMANENT)),
        (404, "SOMETHING_NEW", False, ("HTTP_404", PERMANENT)),
        (200, "INVALID_TOKEN", False, ("INVALID_TOKEN", RUN_STOPPING)),
        (200, "MISSING_AUTH", False, ("MISSING_AUTH", RUN_STOPPING)),
        (401, None, False, ("HTTP_401", RUN_STOPPING)),
        (403, "SOMETHING_NEW", False, ("HTTP_403", RUN_STOPPING)),
        (500, "NOT_FOUND", False, ("NOT_FOUND", PERMANENT)),
        (400, "SERVER_ERROR", False, ("SERVER_ERROR", TRANSIENT)),
        (401, "VALIDATION_ERROR", False, ("VALIDATION_ERROR", PERMANENT)),
        (429, "VALIDATION_ERROR", True, ("VALIDATION_ERROR", PERMANENT)),
    ],
)
def test_rows_of_the_contract(
    status: int, body_code: str | None, has_retry_after: bool, expected: tuple[str, ErrorClass]
) -> None:
    assert classify(status, body_code, has_retry_after=has_retry_after) == expected


statuses = st.integers(100, 599)


@given(statuses, st.sampled_from(sorted(CLASS_BY_CODE)), st.booleans())
def test_a_known_code_wins_over_any_status(status: int, code: str, has_retry_after: bool) -> None:
    told = classify(status, code, has_retry_after=has_retry_after)
    assert told == (code, CLASS_BY_CODE[code])


@given(statuses, st.none() | st.text().filter(lambda code: code not in CLASS_BY_CODE))
def test_without_a_known_code_the_status_decides(status: int, code: str | None) -> None:
    _, error_class = classify(status, code)
    expected = TRANSIENT if status >= 500 else RUN_STOPPING if status in (401, 403) else PERMANENT
    assert error_class is expected


@given(statuses, st.none() | st.text(), st.booleans())
def test_every_refusal_has_a_code(status: int, code: str | None, has_retry_after: bool) -> None:
    told, error_class = classify(status, code, has_retry_after=has_retry_after)
    assert told
    assert error_class in (TRANSIENT, PERMANENT, RUN_STOPPING)
