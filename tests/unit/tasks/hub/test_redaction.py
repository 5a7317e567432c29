"""A text from outside never holds the token, however it is spelt there, and steers nothing."""

import json
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.hub.redaction import cleaned, spellings_of

TOKEN = "marked-unit-token"


@given(
    token=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60),
    spelling=st.sampled_from(
        [
            str,
            lambda token: json.dumps(token)[1:-1],
            lambda token: json.dumps(token)[1:-1].replace("/", r"\/"),
            lambda token: repr(token.encode())[2:-1],
            lambda token: quote(token, safe=""),
            lambda token: re.sub("%..", lambda escape: escape[0].lower(), quote(token, safe="")),
        ]
    ),
    before=st.text(max_size=600),
    after=st.text(max_size=600),
)
def test_no_text_from_outside_holds_the_token(
    token: str, spelling: Callable[[str], str], before: str, after: str
) -> None:
    spelt = spelling(token)
    assume(spelt not in before + after + "[redacted]")
    kept = cleaned(f"{before} {spelt} {after}", spellings_of(token))
    assert spelt not in kept
    assert kept.isprintable()
    assert len(kept) <= 500


@pytest.mark.parametrize("position", range(470, 501, 3))
def test_a_token_at_the_cut_is_not_cut_but_redacted(position: int) -> None:
    kept = cleaned("x" * position + TOKEN, spellings_of(TOKEN))
    assert kept == ("x" * position + "[redacted]")[:500]


def test_control_characters_become_blanks_and_the_ends_are_stripped() -> None:
    assert cleaned("\x00 a\x1b[31mb\n", ()) == "a [31mb"


@pytest.mark.parametrize("given", [None, 5, ["text"], {"text": 1}, b"text"])
def test_what_is_no_text_is_an_empty_one(given: object) -> None:
    assert cleaned(given, spellings_of(TOKEN)) == ""
