"""Admission: closed unless somebody is known, and rules give him the right."""

from __future__ import annotations

import itertools
from functools import partial

import pytest

from httpnas.access.admission import NEEDED, Subject, admit, show
from httpnas.access.errors import MissingRight, Unauthenticated
from httpnas.access.rules import Right, Rule, Rules
from httpnas.files.job import Principal
from httpnas.files.points import Effect, Intent, Verb
from tests.files.jobs import FakeJob

EVERYTHING = Rules([Rule(frozenset({"alice"}), b"", frozenset(Right), frozenset(), 1)])


@pytest.mark.parametrize("who", [None, Principal("alice", "password"), Subject("alice", "token")])
@pytest.mark.parametrize("verb, effect", NEEDED)
def test_who_comes_without_rules_may_do_nothing(
    who: Principal | None, verb: Verb, effect: Effect
) -> None:
    """So a door that forgot to ask who it is stays closed."""
    with pytest.raises(MissingRight):
        admit(FakeJob(principal=who), Intent(verb, b"x", lambda: effect))


def test_who_comes_without_rules_sees_nothing() -> None:
    for who in (None, Principal("alice", "password"), Subject("alice", "token")):
        shows = show(FakeJob(principal=who), b"")
        assert shows is not None and not shows(b"x")


@pytest.mark.parametrize("verb, effect", NEEDED)
def test_who_may_do_everything_may_do_this(verb: Verb, effect: Effect) -> None:
    alice = Subject("alice", "password", rules=EVERYTHING)
    admit(FakeJob(principal=alice), Intent(verb, b"x", lambda: effect))


def test_the_disk_is_not_asked_what_makes_no_difference() -> None:
    alice = Subject("alice", "password", rules=EVERYTHING)

    def ask() -> Effect:
        raise AssertionError("the disk was asked")

    admit(FakeJob(principal=alice), Intent(Verb.UPLOAD, b"x", ask))


def test_what_admission_does_not_know_is_not_done() -> None:
    alice = Subject("alice", "password", rules=EVERYTHING)
    for verb, effect in set(itertools.product(Verb, Effect)) - NEEDED.keys():
        if verb is Verb.UPLOAD:
            continue  # with both rights, nobody looks
        with pytest.raises(KeyError):
            admit(FakeJob(principal=alice), Intent(verb, b"x", partial(Effect, effect)))


def test_anonymous_is_asked_who_he_is() -> None:
    nobody = Subject("anonymous", "anonymous", challenges=("Basic",))
    with pytest.raises(Unauthenticated) as caught:
        admit(FakeJob(principal=nobody), Intent(Verb.LIST, b""))
    assert caught.value.challenges == ("Basic",)
