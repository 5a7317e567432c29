"""Texts of others, as Prefect's interfaces show them."""

import pytest

from flows.markdown import as_cell, escaped


@pytest.mark.parametrize(
    "text",
    ["", "acme", "a.example.com", "NOT_FOUND", "snake_case_key", "no answer within 8000 ms", "a-b"],
)
def test_a_plain_text_is_left_as_it_is(text: str) -> None:
    assert as_cell(text) == escaped(text) == text


@pytest.mark.parametrize(
    ("text", "in_markdown"),
    [
        ("*new*", r"\*new\*"),
        ("_new_", r"\_new\_"),
        ("`new`", r"\`new\`"),
        ("[a](b)", r"\[a\](b)"),
        ("<b>", r"\<b>"),
        ("https://a.example", r"https\://a.example"),
        ("WWW.a.example", r"WWW\.a.example"),
        ("a@b.example", r"a\@b.example"),
        (r"a\b", r"a\\b"),
    ],
)
def test_what_would_be_markup_is_escaped_and_code_in_a_cell(text: str, in_markdown: str) -> None:
    assert escaped(text) == in_markdown
    assert as_cell(text) == f"    {text}"


@pytest.mark.parametrize("text", ["# one", "- one", "+ one", "> one", "1. one", "2) two", "---"])
def test_what_would_be_a_heading_or_a_list_is_code_in_a_cell(text: str) -> None:
    assert as_cell(text) == f"    {text}"


def test_each_line_of_a_cell_is_code() -> None:
    assert as_cell("first\n*second*") == "    first\n    *second*"
