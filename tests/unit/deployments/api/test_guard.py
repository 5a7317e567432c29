"""An API without a token: who is answered, and who may change something."""

import pytest
from fastapi import Request

from deployments.api.errors import FOREIGN_NAME, FOREIGN_PAGE, ApiError
from deployments.api.guard import browser_guard

HERE = "127.0.0.1:3000"


def request(method: str, headers: dict[str, str]) -> Request:
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": method, "headers": pairs})


@pytest.mark.parametrize(
    ("host", "refusal"),
    [
        (HERE, None),
        ("localhost", None),
        ("LOCALHOST:1", None),
        ("[::1]:3000", None),
        ("api.internal:3000", None),
        ("", FOREIGN_NAME),
        ("evil.example", FOREIGN_NAME),
        ("localhost.evil.example", FOREIGN_NAME),
        ("evil.example:127.0.0.1", FOREIGN_NAME),
        ("apixinternal", FOREIGN_NAME),
        ("127.0.0.1:3000.evil.example", FOREIGN_NAME),
    ],
)
def test_only_names_that_are_meant_to_be_used_are_answered(
    host: str, refusal: ApiError | None
) -> None:
    refusal_of = browser_guard("api.internal")
    assert refusal_of(request("GET", {"Host": host})) is refusal
    assert refusal_of(request("POST", {"Host": host})) is refusal


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, None),
        ({"Sec-Fetch-Site": "same-origin", "Origin": f"http://{HERE}"}, None),
        ({"Sec-Fetch-Site": "none"}, None),
        ({"Origin": f"HTTP://{HERE}"}, None),
        ({"Sec-Fetch-Site": "cross-site"}, FOREIGN_PAGE),
        ({"Sec-Fetch-Site": "same-site", "Origin": f"http://{HERE}"}, FOREIGN_PAGE),
        ({"Origin": "http://evil.example"}, FOREIGN_PAGE),
        ({"Origin": "http://127.0.0.1:4200"}, FOREIGN_PAGE),
        ({"Origin": "null"}, FOREIGN_PAGE),
    ],
)
def test_a_page_of_another_site_reads_and_changes_nothing(
    headers: dict[str, str], refusal: ApiError | None
) -> None:
    refusal_of = browser_guard("127.0.0.1")
    with_host = {"Host": HERE, **headers}
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert refusal_of(request(method, with_host)) is refusal
    for method in ("GET", "HEAD", "OPTIONS"):
        assert refusal_of(request(method, with_host)) is None
