"""Underlines: sentences of the document word for word, with their place and a score; nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wim_helpers import (
    DOCUMENT,
    OTHER,
    QUERY,
    ask,
    done,
    of,
    open_wim,
    plainly_read,
    random_readers,
    readers,
    region,
    tokens_read,
)

from wim.chunks import LONG_SENTENCE, split_document
from wim.events import ChunkRead, MarginDone, MarginToken
from wim.prompt_ids import EMPTY
from wim.prompts import Prompts
from wim.underlines import LEAST_SHARE, scores


@readers
def test_what_is_underlined_stands_in_the_document_at_its_place(folders, name):
    wim = open_wim(folders[name], DOCUMENT, margins="underlined", underlines=4)
    events = ask(wim)
    margins = done(events).margins
    assert len(margins) == 4 and [event.margin for event in of(MarginDone, events)] == margins
    assert not of(MarginToken, events) and len(of(ChunkRead, events)) == len(wim.plan.chunks)
    assert [margin.start for margin in margins] == sorted({margin.start for margin in margins})
    for margin in margins:
        chunk = wim.plan.chunks[margin.chunk]
        assert margin.text in chunk.text and chunk.start <= margin.start < margin.end <= chunk.end
        read = wim.prompts.tokenizer.decode(chunk.ids[margin.start - chunk.start : margin.end - chunk.start])
        assert read.strip() == margin.text
        assert margin.probability is None and margin.relevant == (margin.score >= LEAST_SHARE)
    # Where all layers slide and the question stands further from a chunk than their window, it looks at nothing there.
    assert max(margin.score for margin in margins) == (0 if name == "phi3-window" else 1)


def test_what_holds_no_word_is_not_underlined(folders):
    """Code, tables and drawings have lines of brackets, rules and stars."""
    marks = [")", "***", "-----", "}"]
    text = "\n\n".join(f"{mark}\n\nMary is in room {number}." for number, mark in enumerate(marks * 3))
    wim = open_wim(folders["llama"], text, margins="underlined", underlines=12)
    margins = done(ask(wim)).margins
    assert [margin.text for margin in margins] == [f"Mary is in room {number}." for number in range(12)]
    assert any(sentence.text in marks for chunk in wim.plan.chunks for sentence in chunk.sentences)


def test_no_heading_of_the_callers_is_underlined(folders):
    wim = open_wim(folders["llama"], DOCUMENT, margins="underlined", underlines=4)
    best = done(ask(wim)).margins
    at = {(s.start, s.end): s.text_start for chunk in wim.plan.chunks for s in chunk.sentences}
    left_out = [margin for margin in best if margin.score == 1]
    wim.headings = [(at[margin.start, margin.end], at[margin.start, margin.end] + 1) for margin in left_out]
    found = done(ask(wim)).margins
    assert len(found) == 4 and not {m.start for m in found} & {m.start for m in left_out}
    assert {m.start for m in best} - {m.start for m in left_out} < {m.start for m in found}
    assert max(margin.score for margin in found) == 1  # of what is left


@readers
@pytest.mark.parametrize("margins", ["underlined", "both"])
def test_the_documents_cache_is_that_of_plain_reading(folders, name, margins):
    wim = open_wim(folders[name], DOCUMENT, [QUERY, OTHER], margins=margins)
    expected = region(plainly_read(wim, wim.plan.chunks))
    for query in (QUERY, OTHER):
        ask(wim, query)
        assert wim.session.length == expected.shape[3] and torch.equal(region(wim.session), expected)


@random_readers
def test_each_chunk_is_looked_at_from_its_own_end(folders, name):
    """The scores of a chunk do not depend on what follows it, nor on how many are looked at together."""
    whole = open_wim(folders[name], DOCUMENT, margins="underlined")
    ask(whole)
    expected = scores(whole, QUERY, whole.plan.chunks)
    part = open_wim(folders[name], DOCUMENT, margins="underlined")
    part.plan = replace(part.plan, look_chunks=1)
    for event in part.ask(QUERY):
        if isinstance(event, ChunkRead) and event.chunk == 1:
            part.stop()
    found = scores(part, QUERY, part.plan.chunks[:2])
    assert [sentence for _, sentence, _ in found] == [sentence for _, sentence, _ in expected[: len(found)]]
    assert [score for *_, score in found] == pytest.approx([score for *_, score in expected[: len(found)]], rel=1e-3)
    # And they are what the question looks at when no more than the chunk has been read.
    chunk, looks = whole.plan.chunks[1], [whole.prompts.look(query) for query in (QUERY, EMPTY)]
    session, first = plainly_read(whole, whole.plan.chunks[:2]), len(whole.prompts.header)
    borders = [first + at for at in (chunk.start, *(sentence.end for sentence in chunk.sentences))]
    [alone] = session.attention([session.length], *looks, [borders])
    of_chunk = [score * max(1, len(sentence.text)) ** 0.5 for each, sentence, score in expected if each is chunk]
    assert of_chunk == pytest.approx(alone, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_the_last_prompt_holds_them_in_order_and_an_empty_question_underlines_nothing(folders, name):
    wim = open_wim(folders[name], DOCUMENT, [QUERY, "N/A"], margins="underlined")
    read = tokens_read(wim)
    texts = [margin.text for margin in done(ask(wim)).margins if margin.relevant]
    assert wim.prompts.answer_with_margins(QUERY, texts, quoted=texts) in read
    nothing = done(ask(wim, "N/A"))
    assert nothing.margins and not any(margin.relevant for margin in nothing.margins)
    assert wim.prompts.answer("N/A") in read  # without notes, the plain prompt


def test_written_and_underlined_notes_together(folders):
    both, written = (open_wim(folders["llama"], DOCUMENT, margins=kind) for kind in ("both", "written"))
    margins = done(ask(both)).margins
    assert [m.text for m in margins if m.score is None] == [m.text for m in done(ask(written)).margins]
    assert sum(m.score is not None for m in margins) == both.settings.underlines
    assert [m.start for m in margins] == sorted(m.start for m in margins)  # in the document's order


@pytest.mark.parametrize("name", ["llama", "phi3"])
@pytest.mark.parametrize("kept", ["both kinds", "underlined only"])
def test_underlined_sentences_are_never_cut_and_have_room(folders, name, kept):
    """Neither beside written margins, which keep to --margin-tokens, nor alone, where all written ones say nothing."""
    sentence = "Mary, who had been in the garden, the kitchen, the café and the office, went home."
    options = {"margins": "both", "margin_tokens": 3, "underlines": 3, "threshold": 0.0, "chunk_tokens": 90}
    wim = open_wim(folders[name], f"{sentence} " * 8, **options)
    assert len(wim.prompts.tokenizer.encode(sentence)) > 3 * wim.settings.margin_tokens
    for event in wim.ask(QUERY):
        if isinstance(event, MarginDone):
            event.margin.relevant = kept == "both kinds" or event.margin.score is not None
    prompt = tokens_read(wim)
    assert not event.left_out
    done(list(wim.answer(QUERY, event.margins)))
    last = wim.prompts.tokenizer.decode(next(row for row in prompt if len(row) > 1))
    assert last.count(f"- {sentence}\n") == 3
    assert (wim.prompts.prompts.answer_with_underlines.split("{")[0] in last) == (kept == "underlined only")


def test_without_notes_the_last_prompt_says_so_in_the_words_for_margins(folders):
    prompts = replace(Prompts(), no_margins="Nothing.")
    wim = open_wim(folders["llama"], DOCUMENT, prompts=prompts, threshold=1.0)
    read = tokens_read(wim)
    assert not any(margin.relevant for margin in done(ask(wim)).margins)
    expected = prompts.answer_with_margins.replace("{margins}", "Nothing.").replace("{query}", QUERY)
    assert wim.prompts.tokenizer.encode(expected) + wim.prompts.closing in read


def test_no_classifier_is_needed(folders):
    wim = open_wim(folders["llama"], DOCUMENT, margins="underlined")
    assert wim.classifier is None and wim.plan.verdict_capacity == 0


@given(text=st.text(alphabet="ab .!?\n。é🙂", max_size=200), chunk_tokens=st.integers(1, 40))
def test_sentences_are_the_chunk_once_more(folders, text, chunk_tokens):
    tokenizer = open_wim(folders["llama"], DOCUMENT).prompts.tokenizer
    for chunk in split_document(text, tokenizer, chunk_tokens):
        borders = [chunk.start, *(sentence.end for sentence in chunk.sentences)]
        assert [sentence.start for sentence in chunk.sentences] == borders[:-1] and borders[-1] == chunk.end
        assert all(0 < sentence.end - sentence.start <= LONG_SENTENCE for sentence in chunk.sentences)
        assert all(text.startswith(sentence.text, sentence.text_start) for sentence in chunk.sentences)
