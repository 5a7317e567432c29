"""A text from outside never holds the token, however it is spelt there, and steers nothing."""

import base64
import html
import json
import re
from collections.abc import Callable
from html.entities import codepoint2name
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tasks.redaction import Redaction

TOKEN = "marked-unit-token"
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": lambda token: json.dumps(token)[1:-1],
    "JSON of PHP": lambda token: json.dumps(token)[1:-1].replace("/", r"\/"),
    "JSON in JSON": lambda token: json.dumps(json.dumps(token))[3:-3],
    "JSON, all escaped": lambda token: "".join(f"\\u{ord(each):04X}" for each in token),
    "Python": lambda token: repr(token.encode())[2:-1],
    "Python, all escaped": lambda token: "".join(f"\\x{ord(each):02x}" for each in token),
    "URL": lambda token: quote(token, safe=""),
    "URL in lower case": lambda token: re.sub("%..", lambda it: it[0].lower(), quote(token, "")),
    "URL twice": lambda token: quote(quote(token, safe=""), safe=""),
    "URL, all escaped": lambda token: "".join(f"%{ord(each):02X}" for each in token),
    "HTML": html.escape,
    "HTML twice": lambda token: html.escape(html.escape(token)),
    "HTML in decimal": lambda token: "".join(f"&#{ord(each)};" for each in token),
    "HTML in hex": lambda token: "".join(f"&#x{ord(each):04x};" for each in token),
    "HTML by name": lambda token: "".join(
        f"&{codepoint2name[ord(each)]};" if ord(each) in codepoint2name else each for each in token
    ),
    "hex": lambda token: token.encode().hex(),
    "hex in upper case": lambda token: token.encode().hex().upper(),
}
tokens = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60)


@given(
    token=tokens,
    spelling=st.sampled_from(list(SPELLINGS.values())),
    before=st.text(max_size=600),
    after=st.text(max_size=600),
)
def test_no_text_from_outside_holds_the_token(
    token: str, spelling: Callable[[str], str], before: str, after: str
) -> None:
    spelt = spelling(token)
    assume(spelt not in before + after + "[redacted]")
    kept = Redaction([token]).cleaned(f"{before} {spelt} {after}")
    assert spelt not in kept
    assert kept.isprintable()
    assert len(kept) <= 500


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_of_a_spelling_is_redacted(spelling: str) -> None:
    token = "+a/b-c<d>e&f\"g'h%i\\j%41k"
    spelt = SPELLINGS[spelling](token)
    assert Redaction([token]).redacted(f"<{spelt}>") == "<[redacted]>"


@given(token=tokens, data=st.data())
def test_each_character_may_be_spelt_in_another_way(token: str, data: st.DataObject) -> None:
    ways = [SPELLINGS[name] for name in ("as it is", "URL, all escaped", "HTML in hex")]
    spelt = "".join(data.draw(st.sampled_from(ways))(character) for character in token)
    assert Redaction([token]).redacted(spelt) == "[redacted]"


@pytest.mark.parametrize("encode", [base64.standard_b64encode, base64.urlsafe_b64encode])
@given(
    token=tokens,
    before=st.text(st.characters(max_codepoint=32), max_size=30),
    after=st.text(st.characters(max_codepoint=32), max_size=30),
)
@example(token="~~~???~~~???", before="Bearer ", after="")
@example(token="~~~???~~~???", before="Bearer", after="")
@example(token="~~~???~~~???", before="x Bearer", after="")
def test_base64_of_a_text_with_the_token_tells_no_character_of_it(
    encode: Callable[[bytes], bytes], token: str, before: str, after: str
) -> None:
    encoded = encode(f"{before}{token}{after}".encode()).decode()
    kept = Redaction([token]).redacted(encoded)
    assert "[redacted]" in kept
    assert len(kept.split("[redacted]")[0]) <= -(-len(before) * 8 // 6)
    assert len(kept.split("[redacted]")[-1]) <= -(-len(after) * 8 // 6) + 4


@pytest.mark.parametrize("token", ["contraseña-ñandú", "пароль-😀-секрет"])
@pytest.mark.parametrize(
    "spelling",
    [
        json.dumps,
        ascii,
        lambda token: repr(token.encode()),
        lambda token: quote(token, safe=""),
        lambda token: "".join(f"&#{ord(each)};" for each in token),
        lambda token: base64.b64encode(token.encode()).decode(),
        lambda token: token.encode().hex(),
    ],
)
def test_a_secret_of_any_characters_is_found(token: str, spelling: Callable[[str], str]) -> None:
    redacted = Redaction([token]).redacted(spelling(token))
    assert re.fullmatch(r"b?[\"']?\[redacted\]\w?=*[\"']?", redacted)


def test_a_short_secret_is_not_looked_for_in_hex_and_base64() -> None:
    redaction = Redaction(["ab"])
    assert redaction.redacted("ab 6162 YWI= &#97;b") == "[redacted] 6162 YWI= [redacted]"


def test_of_several_secrets_each_is_found_and_none_where_there_is_none() -> None:
    redaction = Redaction(["marked", "", "marked/of:more"])
    assert redaction.redacted("marked/of:more, marked") == "[redacted], [redacted]"
    for secrets in ([], [""]):
        assert Redaction(secrets).redacted("nothing of it") == "nothing of it"


@settings(max_examples=30)
@given(
    token=st.text("\\\"'%25&amp;#xu0", min_size=1, max_size=60),
    parts=st.lists(
        st.sampled_from(["\\", "%25", "&amp;", "%5c", "&#92;", "%", "&", "0", "a", '"'])
    ),
    times=st.integers(1, 300),
)
@example(token="\\" * 30 + "x", parts=["\\"], times=20_000)
@example(token='\\"' * 30 + "x", parts=["\\\\\\\\", '"'], times=20_000)
@example(token="%25" * 30 + "x", parts=["%25"], times=20_000)
@example(token="&amp;" * 30 + "x", parts=["&amp;"], times=20_000)
def test_no_text_takes_long(token: str, parts: list[str], times: int) -> None:
    """A pattern that went back over such a text would never come to its end."""
    assert isinstance(Redaction([token]).redacted("".join(parts) * times), str)


@pytest.mark.parametrize("position", range(470, 501, 3))
def test_a_token_at_the_cut_is_not_cut_but_redacted(position: int) -> None:
    kept = Redaction([TOKEN]).cleaned("x" * position + TOKEN)
    assert kept == ("x" * position + "[redacted]")[:500]


def test_control_characters_become_blanks_and_the_ends_are_stripped() -> None:
    assert Redaction([]).cleaned("\x00 a\x1b[31mb\n") == "a [31mb"


@pytest.mark.parametrize("given", [None, 5, ["text"], {"text": 1}, b"text"])
def test_what_is_no_text_is_an_empty_one(given: object) -> None:
    assert Redaction([TOKEN]).cleaned(given) == ""
