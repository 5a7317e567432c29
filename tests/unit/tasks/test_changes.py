"""Changes: what a dry run shows of an item, field by field."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.changes import changes_between

Change = tuple[str, str | None, str | None]
HIDDEN = "(not shown)"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(st.text(), json_values, max_size=4)


@pytest.mark.parametrize(
    ("confirmed", "body", "expected"),
    [
        pytest.param({"a": 1}, {"a": 1}, [], id="nothing"),
        pytest.param({"a": 1, "b": 2}, {"b": 2, "a": 1}, [], id="another order"),
        pytest.param({"on": True}, {"on": False}, [("on", "true", "false")], id="a flag"),
        pytest.param({"a": 1}, {"a": "1"}, [("a", "1", '"1"')], id="a number as text"),
        pytest.param({"a": True}, {"a": 1}, [("a", "true", "1")], id="true is not 1"),
        pytest.param({"b": "ñ"}, {"b": "☃"}, [("b", '"ñ"', '"☃"')], id="beyond ASCII"),
        pytest.param(
            {"b": 1, "a": 1, "c": 1},
            {"c": 2, "b": 2, "a": 1},
            [("b", "1", "2"), ("c", "1", "2")],
            id="by name, only what differs",
        ),
        pytest.param({}, {"a": 1}, [("a", None, "1")], id="a new field"),
        pytest.param({"a": 1}, {}, [("a", "1", None)], id="a field that is gone"),
        pytest.param({}, {"a": None}, [("a", None, "null")], id="null is not absent"),
        pytest.param(
            None, {"id": "x", "on": True}, [("id", None, '"x"'), ("on", None, "true")], id="new"
        ),
        pytest.param(
            {"a": {"b": 1, "c": {"d": 1}}},
            {"a": {"b": 1, "c": {"d": 2}}},
            [("a.c.d", "1", "2")],
            id="nested",
        ),
        pytest.param(
            {"urls": ["x", "y"]},
            {"urls": ["x", "z", "w"]},
            [("urls.1", '"y"', '"z"'), ("urls.2", None, '"w"')],
            id="in a list",
        ),
        pytest.param(
            {"urls": ["x"]},
            {"urls": []},
            [("urls", None, "[]"), ("urls.0", '"x"', None)],
            id="a list that is emptied",
        ),
        pytest.param(
            {"a": {}},
            {"a": {"b": 1}},
            [("a", "{}", None), ("a.b", None, "1")],
            id="an object that is filled",
        ),
        pytest.param({"a": []}, {"a": {}}, [("a", "[]", "{}")], id="empty, but of another kind"),
    ],
)
def test_fields_that_differ(
    confirmed: dict[str, Any] | None, body: dict[str, Any], expected: list[Change]
) -> None:
    assert told(confirmed, body) == expected


@pytest.mark.parametrize(
    "name", ["password", "PASSWORD_CHECK_URL", "clientSecret", "api_token", "privateKey", "keys"]
)
@pytest.mark.parametrize("value", ["marked", ["marked"], {"inner": "marked"}])
def test_values_of_fields_that_look_like_secrets_are_not_shown(name: str, value: Any) -> None:
    nested: dict[str, Any] = {"inner": {name: "marked"}}
    assert {each[1:] for each in told({}, {name: value})} == {(None, HIDDEN)}
    assert {each[1:] for each in told({name: value}, {})} == {(HIDDEN, None)}
    assert told({"inner": {name: "old"}}, nested) == [(f"inner.{name}", HIDDEN, HIDDEN)]
    assert told({name: value}, {name: value}) == [], "what is the same is no change"


def test_values_are_cut_and_in_one_line() -> None:
    ((_, old, new),) = told({"a": "x" * 198}, {"a": "y\n" * 100})
    assert old == f'"{"x" * 198}"', "what fits is cut"
    assert new is not None
    assert (len(new), new[:5], new[-1]) == (200, '"y\\ny', "…")


def told(confirmed: dict[str, Any] | None, body: dict[str, Any]) -> list[Change]:
    return [(each.field, each.old, each.new) for each in changes_between(confirmed, body)]


@given(bodies, bodies)
def test_what_changes_one_way_changes_the_other(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert told(one, one) == []
    assert told(two, one) == [(name, new, old) for name, old, new in told(one, two)]
