"""Rules: the first that applies decides, and no spelling of a name steps around a path."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.access.rules import NO_RULES, Right, Rule, Rules
from httpnas.fields.names import decode_name
from httpnas.files.job import Principal

ALICE = Principal("alice", "password", frozenset({"team"}))


def rule(path: str, allow: str = "", deny: str = "", who: str = "alice") -> Rule:
    allowed, denied = (frozenset(map(Right, rights.split())) for rights in (allow, deny))
    return Rule(frozenset(who.split()), path.encode(), allowed, denied, 0)


def test_without_a_rule_nothing_is_allowed() -> None:
    assert not any(NO_RULES.allow(right, b"any") for right in Right)


def test_the_first_rule_that_applies_decides() -> None:
    rules = Rules([rule("a/b", deny="read"), rule("a", "read list"), rule("", deny="list")])
    assert rules.allow(Right.READ, b"a")
    assert rules.allow(Right.READ, b"a/c")
    assert not rules.allow(Right.READ, b"a/b")
    assert not rules.allow(Right.READ, b"a/b/c")
    assert rules.allow(Right.LIST, b"a/b")
    assert not rules.allow(Right.LIST, b"c")


def test_a_path_is_compared_by_whole_components() -> None:
    rules = Rules([rule("team", "read")])
    assert rules.allow(Right.READ, b"team/x")
    assert not rules.allow(Right.READ, b"team-b/x")
    assert not rules.allow(Right.READ, b"teams")
    assert not rules.allow(Right.READ, b"")
    assert not rules.allow(Right.READ, b"Team/x")


@pytest.mark.parametrize("who, applies", [("alice", True), ("@team", True), ("bob @other", False)])
def test_a_rule_is_about_those_whom_it_names(who: str, applies: bool) -> None:
    assert Rules([rule("", "read", who=who)]).of(ALICE).allow(Right.READ, b"x") is applies


def test_a_group_is_not_a_principal_of_the_same_name() -> None:
    rules = Rules([rule("", "read", who="team")])
    assert not rules.of(ALICE).allow(Right.READ, b"x")


COMPONENTS = ("a", "b", "ab")
NAMES = [
    "/".join(parts)
    for parts in (
        [],
        *[[x] for x in COMPONENTS],
        *[[x, y] for x in COMPONENTS for y in COMPONENTS],
        *[[x, y, z] for x in COMPONENTS for y in COMPONENTS for z in COMPONENTS],
    )
]
RULES = st.lists(
    st.builds(
        rule,
        st.sampled_from(NAMES),
        st.sampled_from(["", "read", "list", "read list"]),
        st.sampled_from(["", "delete"]),
    )
    | st.builds(rule, st.sampled_from(NAMES), st.just(""), st.sampled_from(["read", "list"])),
    max_size=6,
).map(Rules)


def below(name: str) -> list[str]:
    return [each for each in NAMES if each == name or not name or each.startswith(name + "/")]


@given(RULES, st.sampled_from(NAMES))
def test_what_holds_throughout_and_somewhere_is_what_every_name_says(
    rules: Rules, name: str
) -> None:
    """The names tried have as many components as the paths, which is all that can matter."""
    for right in (Right.READ, Right.LIST):
        each = [rules.allow(right, one.encode()) for one in below(name)]
        assert rules.allow_throughout(right, name.encode()) is all(each)
        assert rules.allow_somewhere(right, name.encode()) is any(each)


@given(RULES, st.sampled_from(NAMES))
def test_a_listing_shows_what_may_be_listed_and_what_leads_there(rules: Rules, name: str) -> None:
    shown: Callable[[bytes], bool] = rules.shown(name.encode()) or (lambda leaf: True)
    for leaf in (*COMPONENTS, "c"):
        at = f"{name}/{leaf}" if name else leaf
        may = [rules.allow(Right.LIST, one.encode()) for one in below(at) or [at]]
        assert shown(leaf.encode()) is any(may), (leaf, may)


def spelled(draw: st.DrawFn, component: str) -> str:
    """Return *component* with some characters escaped, in either case."""
    ways = st.sampled_from(["{0}", "%{1:02x}", "%{1:02X}"])
    return "".join(draw(ways).format(character, ord(character)) for character in component)


@st.composite
def spellings(draw: st.DrawFn, name: str) -> bytes:
    """Return a way to write *name* in a request."""
    slash = st.sampled_from(["/", "//", "/./", "%2F", "%2f", "/%2e/", "///"])
    parts = [spelled(draw, component) for component in name.split("/")]
    text = draw(slash) + parts[0]
    for part in parts[1:]:
        text += draw(slash) + part
    return (text + draw(st.sampled_from(["", "/", "/.", "%2f"]))).encode()


@given(spellings("team/secret/x.txt"))
def test_no_spelling_of_a_name_steps_around_a_path(target: bytes) -> None:
    rules = Rules([rule("team/secret", deny="read"), rule("team", "read")])
    name = decode_name(target)
    assert name == b"team/secret/x.txt"
    assert not rules.allow(Right.READ, name)


@given(st.text(min_size=1).map(lambda text: quote(text, safe="/%")))
def test_what_is_allowed_below_a_path_has_it_as_its_first_components(target: str) -> None:
    try:
        name = decode_name(b"/team/" + target.encode())
    except ValueError:
        return
    assert name.split(b"/")[0] == b"team"
    assert Rules([rule("team", "read")]).allow(Right.READ, name)


@given(RULES, st.integers(0, 6), st.sampled_from(NAMES))
def test_the_beginning_of_a_file_allows_no_more_than_the_whole(
    rules: Rules, count: int, name: str
) -> None:
    """So a file that is read while it is being written opens nothing."""
    beginning = Rules(rules._rules[:count])
    for right in Right:
        assert rules.allow(right, name.encode()) or not beginning.allow(right, name.encode())
