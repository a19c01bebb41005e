"""The simulated worlds: consistent, and every answer follows from the world and from its evidence alone."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from tasks.needles import NEEDLE, make_needles
from tasks.story import DROP, MOVE, STATEMENT, TAKE, simulate

seeds = st.integers(0, 10**9)


def replay(statements):
    """Where every person and object is, what is carried; asserts that each event is possible."""
    at, carried, lying = {}, {}, {}
    for s in statements:
        if s.kind == MOVE:
            assert at.get(s.person) != s.thing
            at[s.person] = s.thing
        elif s.kind == TAKE:
            assert s.thing not in carried
            assert s.person in at and lying.pop(s.thing, at[s.person]) == at[s.person]
            carried[s.thing] = s.person
        else:
            assert s.kind == DROP and carried.pop(s.thing) == s.person
            lying[s.thing] = at[s.person]
    return at, {**lying, **{thing: at[person] for thing, person in carried.items()}}


@settings(max_examples=150, deadline=None)
@given(seeds, st.integers(0, 80))
def test_world_is_consistent_and_targets_follow_from_it(seed, n):
    story = simulate(random.Random(seed), n)
    assert len(story.statements) == n
    at, objects = replay(story.statements)
    asked = set()
    for q in story.questions():
        evidence = [story.statements[i] for i in q.evidence]
        assert list(q.evidence) == sorted(set(q.evidence))
        subject = q.query.rstrip("?").split()[-1 if q.task in ("single_fact", "two_facts") else -2]
        asked.add((q.task, subject))
        if q.task == "two_facts":
            assert q.target == objects[subject]
            moves = [s for s in evidence if s.kind == MOVE]
            assert moves and moves[-1].thing == q.target  # the evidence alone decides
            assert {s.thing for s in evidence if s.kind != MOVE} == {subject}
            continue
        moves = [s for s in story.statements if s.kind == MOVE and s.person == subject]
        assert evidence == moves
        if q.task == "single_fact":
            assert q.target == at[subject] == moves[-1].thing
        elif q.task == "counting":
            assert q.target == str(len(moves))
        else:
            assert q.task == "listing" and 2 <= len(q.target) <= 6
            assert list(q.target) == sorted({s.thing for s in moves}, key=[s.thing for s in moves].index)
    assert len(asked) == len(story.questions())
    assert {s for t, s in asked if t == "single_fact"} == set(at)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_statements_have_the_form_that_backgrounds_avoid(seed):
    story = simulate(random.Random(seed), 30)
    assert all(STATEMENT.search(text) for text in story.texts)
    assert simulate(random.Random(seed), 30) == story != simulate(random.Random(seed + 1), 30)


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(1, 48))
def test_needles(seed, n):
    needles = make_needles(random.Random(seed), n)
    texts = needles.texts
    assert len(texts) == n and all(NEEDLE.search(text) for text in texts)
    for q in needles.questions():
        targets = (q.target,) if isinstance(q.target, str) else q.target
        cities = [city for city in {c for c, _ in needles.pairs} if f" {city}" in q.query]
        facts = {text for city in cities for text in texts if f" of {city} is" in text}
        assert {texts[i] for i in q.evidence} == facts and len(facts) == len(targets)
        assert all(any(text.endswith(f" {number}.") for text in facts) for number in targets)
        assert len(targets) == 1 if q.task == "needles_single" else 2 <= len(targets) <= 4
        if q.task == "needles_several":  # numbers in the order in which the question names the cities
            owner = dict((number, city) for city, number in needles.pairs)
            places = [q.query.index(f" {owner[number]}") for number in targets]
            assert places == sorted(places)
