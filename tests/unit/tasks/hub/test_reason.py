"""The reason that an answer gives, wherever it stands, and none where it gives none."""

import html
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.hub.reason import Reason, json_object, reason_in

MIB = 1 << 20


def reason(body: Any, location: str | None = None) -> Reason:
    """Return the reason in a body: text as it is, anything else as JSON."""
    content = body if isinstance(body, str) else json.dumps(body)
    return reason_in(json_object(content.encode()), content.encode(), location)


@pytest.mark.parametrize("key", ["message", "Message", "errorMessage", "detail", "error"])
@pytest.mark.parametrize("ok", [{}, {"ok": False}])
def test_the_text_of_a_json_object(key: str, ok: dict[str, bool]) -> None:
    assert reason({"type": "User", key: "why", **ok}) == Reason(text="why")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"code": "X", "message": "why"}}, Reason(refusal="why")),
        ({"message": "other", "error": {"message": "why"}}, Reason(refusal="why")),
        ({"message": "why", "error": {"code": "X"}}, Reason(text="why")),
        ({"message": "why", "error": {"message": ""}}, Reason(text="why")),
        ({"message": "why", "error": "Not Found"}, Reason(text="why")),
        ({"message": None, "Message": 5, "detail": "why"}, Reason(text="why")),
        ({"message": "", "detail": "why"}, Reason(text="why")),
        ({"message": " \n", "detail": " why "}, Reason(text="why")),
        ({"detail": [{"msg": "why"}]}, Reason()),
        ({"error": {"message": ["why"]}}, Reason()),
        ({"title": "why"}, Reason()),
        ({"ok": True}, Reason()),
    ],
)
def test_which_text_of_a_json_object(body: Any, expected: Reason) -> None:
    assert reason(body) == expected


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<html><head><title>403 Forbidden</title></head>x</html>", "403 Forbidden"),
        ("<HTML><TITLE lang=en>\n 403\t Forbidden \n</TITLE>x", "403 Forbidden"),
        ("<title>Nie&#233; &amp; nein</title>", "Nieé & nein"),
        ("<title>&lt;b&gt;</title>", "<b>"),
        ("<title>cut off", "cut off"),
        ("<title></title><h1>Forbidden</h1>", "Forbidden"),
        ("<title>\n</title>no &quot;way&quot;", 'no "way"'),
        ("<h1>Bad<br/>Gateway</h1>\n\n<p>by\tnginx</p>", "Bad Gateway by nginx"),
        ("no healthy upstream\n", "no healthy upstream"),
        ("upstream\0connect error", "upstream\0connect error"),
        ("1 < 2", "1 < 2"),
        ("", ""),
        (" \n\t", ""),
        ("<html></html>", ""),
        ("<" * 100, "<" * 100),
    ],
)
def test_the_words_of_a_page_or_text(page: str, words: str) -> None:
    assert reason(page) == Reason(text=words)


def test_bytes_that_are_no_utf_8_are_left_out() -> None:
    assert reason_in({}, b"\xffno \xfe way", None) == Reason(text="no way")


@pytest.mark.parametrize(
    "body", ['{"message": "cut o', ' \n{"message": why}', '["why"', '["why"]', "{}", "[" * 200_000]
)
def test_json_that_is_broken_or_no_object_gives_no_words(body: str) -> None:
    assert reason(body) == Reason()


@pytest.mark.parametrize("page", ["{}", "<title>{}</title>", "<p>{}</p>"])
def test_of_a_text_that_is_long_whole_words_are_told(page: str) -> None:
    words = " ".join(f"word-{number}" for number in range(100))
    told = reason(page.format(words)).text
    assert 190 < len(told) <= 200
    assert words.startswith(f"{told} ")


@pytest.mark.parametrize(("length", "told"), [(199, "x" * 199), (200, "x" * 200), (201, "")])
def test_a_word_that_ends_at_the_limit_is_told(length: int, told: str) -> None:
    assert reason("x" * length + " yy").text == told


@given(st.integers(150, 250), st.integers(0, 60))
def test_a_word_at_the_cut_is_told_whole_or_not_at_all(position: int, behind: int) -> None:
    word = "marked-unit-token"
    told = reason(f"{'x' * position} {word} {'y' * behind}").text
    assert len(told) <= 200
    assert "m" not in told or word in told


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://hub.example/a/b", "https://hub.example/a/b"),
        ("https://user:pass@hub.example:8443/a?key=secret#part", "https://hub.example:8443/a"),
        ("//user:pass@hub.example/a?secret", "//hub.example/a"),
        ("https://a@b:pass@hub.example/", "https://hub.example/"),
        ("/login?next=secret", "/login"),
        ("https://[::1]:8443/", "https://[::1]:8443/"),
        ("http://[::1", "an address that is none"),
        ("http://\u2100.example/", "an address that is none"),
        ("", ""),
    ],
)
def test_where_a_redirect_points_is_told_without_credentials_and_query(
    location: str, told: str
) -> None:
    assert reason("<title>301 Moved</title>", location) == Reason(text=f"redirects to {told}")


_pieces = st.sampled_from(
    [
        "<",
        ">",
        "<title",
        "<title>",
        "</title>",
        "&",
        "&#",
        "&#x",
        "1114112",
        "0" * 5000,
        ";",
        " ",
        "x",
    ]
)


@given(st.lists(_pieces, max_size=30).map("".join) | st.text())
@example(page="&#" + "9" * 5000)
@example(page="<title>&#" + "9" * 5000)
@example(page="<" * MIB)
@example(page="<title" * (MIB // 6))
@example(page="<title>" * (MIB // 7))
@example(page="<title>" + " " * MIB)
@example(page="<a " * (MIB // 3))
@example(page="&" * MIB)
@example(page="&#" * (MIB // 2))
@example(page="& " * (MIB // 2))
@example(page="&#x" + "f" * MIB)
@example(page=" " * MIB)
@example(page="x" * MIB)
def test_any_text_gives_a_few_words(page: str) -> None:
    words = reason_in({}, page.encode(errors="ignore"), None).text
    assert len(words) <= 200
    assert words == " ".join(words.split())


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=100))
def test_a_title_is_told_as_a_browser_shows_it(title: str) -> None:
    assert reason(f"<title>{html.escape(title)}</title>") == Reason(text=title)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * MIB,
        b'{"a":' * (MIB // 5),
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"9" * 5000,
    ],
)
def test_what_is_no_json_object_is_an_empty_one(body: bytes) -> None:
    assert json_object(body) == {}


def test_a_json_object() -> None:
    assert json_object(b'\xef\xbb\xbf{"ok": true}') == {"ok": True}
