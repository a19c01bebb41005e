"""The patterns that the paper compares with, what the last prompt holds, and who judges."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from weights_helpers import write_json
from wim_helpers import (
    DOCUMENT,
    OTHER,
    QUERY,
    ask,
    document,
    done,
    of,
    open_wim,
    plainly_read,
    readers,
    region,
    reply,
    tokens_read,
    write_reader,
)

from wim.events import AnswerToken, ChunkJudged, ChunkRead, MarginDone, MarginToken
from wim.notes import sentences
from wim.prompts import Prompts

# Patterns and classifiers -------------------------------------------------------------------------------------------------


@readers
def test_the_pattern_llm_is_the_document_and_then_the_question(folders, name):
    wim = open_wim(folders[name], DOCUMENT, pattern="llm")
    events = ask(wim)
    last, session = done(events), plainly_read(wim, wim.plan.chunks)
    assert not of(MarginToken, events) and last.margins == [] and wim.plan.verdict_capacity == 0
    assert torch.equal(region(wim.session), region(session))
    assert last.answer == reply(session, wim.prompts.answer(QUERY), wim, 9)


@pytest.mark.parametrize("keep", [False, True])
def test_the_final_prompt_holds_no_sentence_of_a_chunk_before_twice(folders, keep):
    wim = open_wim(folders["llama"], document(), threshold=0.0, keep_repeats=keep)
    first, second, *others = (chunk.text for chunk in wim.plan.chunks)
    only_in_first = next(sentence for sentence in sentences(first) if sentence not in second)
    read = tokens_read(wim)

    def write(event):
        if isinstance(event, MarginDone):
            event.margin.text = only_in_first if event.margin.chunk < 2 else f"Nothing new in {event.margin.chunk}."

    list(map(write, wim.ask(QUERY)))
    kept = [only_in_first] * (2 if keep else 1) + [f"Nothing new in {2 + i}." for i in range(len(others))]
    assert wim.prompts.answer_with_margins(QUERY, kept) in read


@pytest.mark.parametrize("name", ["llama", "phi3-window", "qwen2"])
def test_the_pattern_rag_reads_only_what_was_judged_relevant(folders, name):
    probe = of(ChunkJudged, ask(open_wim(folders[name], DOCUMENT, pattern="rag")))
    probabilities = [event.probability for event in probe]
    # Between the second and the third: two chunks are relevant.
    threshold = sum(sorted(probabilities)[-3:-1]) / 2
    wim = open_wim(folders[name], DOCUMENT, pattern="rag", threshold=threshold)
    events = ask(wim)
    relevant = [chunk for chunk, p in zip(wim.plan.chunks, probabilities, strict=True) if p >= threshold]
    assert len(relevant) == 2
    assert [event.relevant for event in of(ChunkJudged, events)] == [chunk in relevant for chunk in wim.plan.chunks]
    assert [event.chunk for event in of(ChunkRead, events)] == [chunk.index for chunk in relevant]
    session = plainly_read(wim, relevant)
    assert torch.equal(region(wim.session), region(session))
    assert done(events).answer == reply(session, wim.prompts.answer(QUERY), wim, 9)
    assert done(events).tokens["document"] == sum(len(chunk.ids) for chunk in relevant)

    # Each chunk was judged alone, after the header.
    for chunk, probability in zip(wim.plan.chunks[:3], probabilities, strict=False):
        session = plainly_read(wim, [chunk])
        [expected] = session.probability([wim.prompts.relevance(QUERY)], wim.prompts.yes, wim.prompts.no)
        assert probability == pytest.approx(expected, abs=1e-5)


def test_the_pattern_rag_takes_the_most_probable_chunk_when_none_is_relevant(folders):
    wim = open_wim(folders["llama"], DOCUMENT, pattern="rag", threshold=1.0)
    events = ask(wim)
    judged = of(ChunkJudged, events)
    best = max(judged, key=lambda event: event.probability)
    assert not any(event.relevant for event in judged)
    assert [event.chunk for event in of(ChunkRead, events)] == [best.chunk]


def test_the_pattern_rag_answers_a_second_question_as_the_first(folders):
    wim, fresh = (open_wim(folders["qwen2"], DOCUMENT, [QUERY, OTHER], pattern="rag") for _ in range(2))
    ask(wim, QUERY)
    found, expected = done(ask(wim, OTHER)), done(ask(fresh, OTHER))
    assert (found.answer, found.chunks_read, found.tokens) == (expected.answer, expected.chunks_read, expected.tokens)
    assert torch.equal(region(wim.session), region(fresh.session))


def test_chunks_can_be_judged_on_several_questions_at_once(folders):
    queries = [QUERY, OTHER, QUERY]  # one of them twice
    together, alone = (open_wim(folders["llama"], DOCUMENT, queries, pattern="rag") for _ in range(2))
    judged = list(together.judge_chunks(queries))
    assert len(of(ChunkJudged, judged)) == 3 * len(together.plan.chunks)
    for query in (QUERY, OTHER):
        events = ask(alone, query)
        expected = [event.probability for event in of(ChunkJudged, events)]
        assert together.relevance[query] == pytest.approx(expected, abs=1e-5)
        found = ask(together, query)
        assert not of(ChunkJudged, found) and done(found).answer == done(events).answer


def test_the_pattern_rag_can_be_stopped_too(folders):
    wim = open_wim(folders["llama"], DOCUMENT, [QUERY, OTHER], pattern="rag", threshold=0.0)

    def stop_at_the_second_chunk(event):
        if isinstance(event, ChunkJudged) and event.chunk == 1:
            wim.stop()

    events = ask(wim, on=stop_at_the_second_chunk)
    assert [event.chunk for event in of(ChunkJudged, events)] == [0, 1]
    assert [event.chunk for event in of(ChunkRead, events)] == [0, 1] and done(events).chunks_read == 2
    # The next question is answered from as much.
    assert [event.chunk for event in of(ChunkJudged, ask(wim, OTHER))] == [0, 1]


@pytest.mark.parametrize("late", [ChunkRead, AnswerToken])
def test_a_stop_after_all_was_judged_leaves_nothing_out(folders, late):
    wim = open_wim(folders["llama"], DOCUMENT, [QUERY, OTHER], pattern="rag", threshold=0.0)
    first = ask(wim, on=lambda event: wim.stop() if isinstance(event, late) else None)
    assert len(of(ChunkJudged, first)) == len(of(ChunkJudged, ask(wim, OTHER))) == len(wim.plan.chunks)


def test_a_stop_counts_for_the_question_that_is_being_judged(folders):
    wim = open_wim(folders["llama"], DOCUMENT, [QUERY, OTHER], pattern="rag")
    ask(wim)
    events = ask(wim, OTHER, on=lambda event: wim.stop() if isinstance(event, ChunkJudged) else None)
    assert [event.chunk for event in of(ChunkJudged, events)] == [0]


@pytest.mark.parametrize("pattern", ["wim", "llm", "rag"])
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_a_chat_format_may_have_nothing_before_the_text(folders, tmp_path, name, pattern):
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = "{{ messages[0].content }}" + {"llama": "<|eot_id|>", "phi3": "<|end|>"}[name]
    write_json(tmp_path / "tokenizer_config.json", config | {"chat_template": template, "add_bos_token": False})
    wim = open_wim(tmp_path, DOCUMENT, pattern=pattern, prompts=Prompts(opening=""))
    assert wim.prompts.header == []
    assert done(ask(wim)).chunks_read > 0 and done(ask(wim)).chunks_read > 0


def test_without_a_classifier_all_margins_count(folders):
    wim = open_wim(folders["llama"], DOCUMENT, classifier=None)
    last = done(ask(wim))
    assert wim.plan.verdict_capacity == 0 and last.tokens["verdicts"] == 0
    assert all(margin.relevant and margin.probability is None for margin in last.margins)
    assert last.tokens["final_prompt"] == len(wim.prompts.answer_with_margins(QUERY, [m.text for m in last.margins]))


@pytest.mark.parametrize(
    "name, other", [("llama", "phi3"), ("phi3", "qwen2-window"), ("qwen2", "llama"), ("qwen2", "qwen2")]
)
@pytest.mark.parametrize("window", [1, None])
def test_another_model_can_judge(folders, name, other, window):
    """With its own tokenizer, prompts and cache; the margins are those of the reader."""
    wim = open_wim(folders[name], DOCUMENT, classifier=folders[other], margin_window=window)
    own = open_wim(folders[name], DOCUMENT, margin_window=window)
    judge = open_wim(folders[other], DOCUMENT)
    margins = done(ask(wim)).margins
    assert [margin.text for margin in margins] == [margin.text for margin in done(ask(own)).margins]
    expected = [judge.classifier.judge(QUERY, [margin.text])[0][0] for margin in margins]
    assert [margin.probability for margin in margins] == pytest.approx(expected, abs=1e-4)


def test_the_same_folder_given_twice_is_one_model(tmp_path):
    """LongRoPE: the verdicts, which are short, must not change the factors that the document is read with."""
    folder = write_reader(tmp_path, "phi3-longrope", original_max_position_embeddings=200)
    same, twice = (open_wim(folder, DOCUMENT, classifier=classifier) for classifier in ("same", folder))
    assert same.plan.verdict_capacity <= 200 < same.plan.max_length
    a, b = done(ask(same)), done(ask(twice))
    assert [margin.text for margin in a.margins] == [margin.text for margin in b.margins]
    assert a.answer == b.answer


def test_a_seed_makes_a_run_reproducible(folders):
    def run(seed):
        return done(ask(open_wim(folders["llama"], DOCUMENT, temperature=1.0, top_p=0.9, seed=seed)))

    assert run(1).margins == run(1).margins
    assert [m.text for m in run(1).margins] != [m.text for m in run(2).margins]
