"""wim/prompts.py: the wording, how values get into it, and a file that replaces it."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from cli.options import reading_prompts
from hypothesis import given
from hypothesis import strategies as st

from model import InputError
from wim.prompts import PLACEHOLDER, Prompts, fill, list_margins

NAMES = list(asdict(Prompts()))


@given(query=st.text(), margin=st.text())
def test_values_are_put_in_once_and_never_looked_at_again(query, margin):
    assert fill("a {query} b {margin} c {query}", query=query, margin=margin) == f"a {query} b {margin} c {query}"


@pytest.mark.parametrize(
    "value", ["{query}", "{beginning}", "{margins}", "{margin}", "{0}", "{}", "\\1", r"\g<1>", "%s", "{{query}}"]
)
def test_placeholders_in_values_are_text(value):
    values = dict.fromkeys(("margin", "query", "margins", "beginning"), value)
    assert fill("{margin}|{query}|{margins}|{beginning}", **values) == "|".join([value] * 4)


def test_other_braces_in_a_template_stay():
    assert fill('{"json": {query}} {other} {}', query="q") == '{"json": q} {other} {}'


def test_margins_are_listed_one_a_line_in_their_order():
    prompts = Prompts()
    assert list_margins(prompts, ["Mary went  home.\nJohn\tdid not.", "{query}"]) == (
        "- Mary went home. John did not.\n- {query}"
    )
    assert list_margins(prompts, []) == prompts.no_margins


def test_every_prompt_asks_what_it_is_there_for():
    placeholders = {name: set(PLACEHOLDER.findall(text)) for name, text in asdict(Prompts()).items()}
    assert placeholders == {
        "opening": set(),
        "margin": {"query", "beginning"},
        "verdict": {"query", "margin"},
        "relevance": {"query"},
        "answer": {"query"},
        "answer_with_margins": {"query", "margins"},
        "answer_with_underlines": {"query", "margins"},
        "no_margins": set(),
    }


def from_file(path):
    """As --prompts reads it, for a checkpoint without wishes of its own."""
    return reading_prompts(SimpleNamespace(prompts=str(path)), SimpleNamespace(folder=path.parent))


def write(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_file_replaces_some_texts_and_leaves_the_others(tmp_path, name):
    text = "Über " + " ".join(f"{{{placeholder}}}" for placeholder in PLACEHOLDER.findall(getattr(Prompts(), name)))
    read = from_file(write(tmp_path, {name: text}))
    assert asdict(read) == asdict(Prompts()) | {name: text}


def test_a_margin_prompt_can_do_without_the_beginning(tmp_path):
    prompts = from_file(write(tmp_path, {"margin": "Notes on {query}!"}))
    assert fill(prompts.margin, query="this", beginning="Mary") == "Notes on this!"


def test_an_empty_object_changes_nothing(tmp_path):
    assert from_file(write(tmp_path, {})) == Prompts()


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", ["is not JSON"]),
        ("[" * 100_000, ["is not JSON"]),
        ([], ["one JSON object"]),
        ({"margin": 3}, ["texts"]),
        ({"margins": "{query}"}, ["'margins'", *NAMES]),
        ({"margin": "What?"}, ["'margin'", "placeholders {query} (and may hold {beginning})", "holds none"]),
        ({"margin": "{beginning}"}, ["'margin'", "placeholders {query}", "holds {beginning}"]),
        ({"margin": "{query} {beginning} {margin}"}, ["'margin'", "holds {beginning}, {margin}, {query}"]),
        ({"verdict": "{query}"}, ["'verdict'", "{margin}, {query}", "holds {query}"]),
        ({"answer": "{query} {margins}"}, ["'answer'", "placeholders {query}", "holds {margins}, {query}"]),
        ({"answer": "{query} {beginning}"}, ["'answer'", "placeholders {query} and holds {beginning}, {query}"]),
        ({"opening": "{query}"}, ["'opening'", "placeholders none"]),
    ],
    ids=lambda value: None,
)
def test_a_file_that_cannot_be_used_gets_a_sentence(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as error:
        from_file(path)
    assert all(word in str(error.value) for word in [str(path), *words]), str(error.value)


def test_a_file_that_cannot_be_read_gets_a_sentence(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("absent", ".", "binary"):
        with pytest.raises(InputError) as error:
            from_file(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
