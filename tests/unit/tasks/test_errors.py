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
    ("status", "body_code", "expected"),
    [
        (200, "TIMEOUT", ("TIMEOUT", TRANSIENT)),
        (200, "CONNECTION_ERROR", ("CONNECTION_ERROR", TRANSIENT)),
        (200, "SERVER_ERROR", ("SERVER_ERROR", TRANSIENT)),
        (200, "TEMPORARY_UNAVAILABLE", ("TEMPORARY_UNAVAILABLE", TRANSIENT)),
        (500, None, ("SERVER_ERROR", TRANSIENT)),
        (501, None, ("SERVER_ERROR", TRANSIENT)),
        (503, None, ("SERVER_ERROR", TRANSIENT)),
        (599, "SOMETHING_NEW", ("SERVER_ERROR", TRANSIENT)),
        (408, None, ("HTTP_408", TRANSIENT)),
        (425, None, ("HTTP_425", TRANSIENT)),
        (429, None, ("HTTP_429", TRANSIENT)),
        (429, "SOMETHING_NEW", ("HTTP_429", TRANSIENT)),
        (200, "NOT_FOUND", ("NOT_FOUND", PERMANENT)),
        (200, "VALIDATION_ERROR", ("VALIDATION_ERROR", PERMANENT)),
        (200, "UNEXPECTED_RESPONSE", ("UNEXPECTED_RESPONSE", PERMANENT)),
        (200, "SOMETHING_NEW", ("SOMETHING_NEW", PERMANENT)),
        (200, None, ("UNEXPECTED_RESPONSE", PERMANENT)),
        (204, None, ("UNEXPECTED_RESPONSE", PERMANENT)),
        (302, None, ("UNEXPECTED_RESPONSE", PERMANENT)),
        (404, None, ("HTTP_404", PERMANENT)),
        (404, "SOMETHING_NEW", ("HTTP_404", PERMANENT)),
        (409, None, ("HTTP_409", PERMANENT)),
        (200, "INVALID_TOKEN", ("INVALID_TOKEN", RUN_STOPPING)),
        (200, "MISSING_AUTH", ("MISSING_AUTH", RUN_STOPPING)),
        (401, None, ("HTTP_401", RUN_STOPPING)),
        (403, "SOMETHING_NEW", ("HTTP_403", RUN_STOPPING)),
        (500, "NOT_FOUND", ("NOT_FOUND", PERMANENT)),
        (400, "SERVER_ERROR", ("SERVER_ERROR", TRANSIENT)),
        (401, "VALIDATION_ERROR", ("VALIDATION_ERROR", PERMANENT)),
        (408, "INVALID_TOKEN", ("INVALID_TOKEN", RUN_STOPPING)),
        (429, "VALIDATION_ERROR", ("VALIDATION_ERROR", PERMANENT)),
    ],
)
def test_rows_of_the_contract(
    status: int, body_code: str | None, expected: tuple[str, ErrorClass]
) -> None:
    assert classify(status, body_code) == expected


statuses = st.integers(100, 599)


@given(statuses, st.sampled_from(sorted(CLASS_BY_CODE)))
def test_a_known_code_wins_over_any_status(status: int, code: str) -> None:
    assert classify(status, code) == (code, CLASS_BY_CODE[code])


def class_of_status(status: int) -> ErrorClass:
    if status >= 500 or status in (408, 425, 429):
        return TRANSIENT
    return RUN_STOPPING if status in (401, 403) else PERMANENT


@given(st.none() | st.text().filter(lambda code: code not in CLASS_BY_CODE))
def test_without_a_known_code_the_status_decides(code: str | None) -> None:
    for status in range(100, 600):
        told, error_class = classify(status, code)
        assert told, status
        assert error_class is class_of_status(status), status
