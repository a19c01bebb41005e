"""The loop: what is in the cache, and what happens in which order."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from wim_helpers import (
    DOCUMENT,
    OTHER,
    QUERY,
    UNEVEN,
    ask,
    document,
    done,
    margin_prompts,
    of,
    open_wim,
    plain_readers,
    plainly_read,
    random_readers,
    readers,
    region,
    reply,
    tokens_read,
)

from weights import Checkpoint, sessions
from wim.budget import make_plan
from wim.events import AnswerToken, ChunkJudged, ChunkRead, Done, Margin, MarginDone, MarginToken, Noted, Rollback
from wim.prompts import Prompts
from wim.reader import Reader

# The cache ----------------------------------------------------------------------------------------------------------------


@readers
@pytest.mark.parametrize("window", [1, 2, None], ids=["window-1", "window-2", "window-all"])
def test_margins_leave_no_trace_in_the_cache(folders, name, window):
    """The document's region is that of plain chunked prefill, bit for bit, after one question and after two."""
    wim = open_wim(folders[name], DOCUMENT, [QUERY, OTHER], margin_window=window)
    assert len(wim.plan.chunks) > 3
    expected = region(plainly_read(wim, wim.plan.chunks))
    for query in (QUERY, OTHER):
        assert done(ask(wim, query)).tokens["margins"] > 0
        assert wim.session.length == expected.shape[3]
        assert torch.equal(region(wim.session), expected)


@readers
def test_windows_write_the_same_margins_token_for_token(folders, name):
    runs = {}
    for window in (1, 2, None):
        wim = open_wim(folders[name], UNEVEN, margin_window=window)
        lengths = [len(prompt) for prompt in margin_prompts(wim)]
        assert max(lengths) - min(lengths) > 10
        assert wim.plan.margin_window == (window or len(wim.plan.chunks))
        runs[window] = done(ask(wim))
    assert any(margin.text for margin in runs[1].margins)
    for window in (2, None):
        assert [m.text for m in runs[window].margins] == [m.text for m in runs[1].margins]
        assert runs[window].tokens == runs[1].tokens
        assert runs[window].answer == runs[1].answer
        for margin, expected in zip(runs[window].margins, runs[1].margins, strict=True):
            assert (margin.chunk, margin.start, margin.end) == (expected.chunk, expected.start, expected.end)
            assert margin.probability == pytest.approx(expected.probability, abs=1e-4)


@random_readers
def test_a_margin_is_the_reply_to_its_prompt_after_its_chunk(folders, name):
    wim = open_wim(folders[name], DOCUMENT)
    margins = done(ask(wim)).margins
    assert [margin.chunk for margin in margins] == list(range(len(wim.plan.chunks)))
    for margin in margins[:3]:
        session = plainly_read(wim, wim.plan.chunks[: margin.chunk + 1])
        assert reply(session, margin_prompts(wim)[margin.chunk], wim, 10) == margin.text


@random_readers
def test_packed_verdicts_change_nothing(folders, name):
    """They ride along with the next chunk: the same margins, verdicts and answer with fewer forward passes."""
    plain, packed = (open_wim(folders[name], DOCUMENT, pack=pack) for pack in (False, True))
    events, passes = {}, {}
    for wim in (plain, packed):
        read = []
        wim.session.model.register_forward_pre_hook(lambda module, arguments, read=read: read.append(arguments[0].shape))
        events[wim], passes[wim] = ask(wim), len(read)
    assert passes[packed] == passes[plain] - (len(plain.plan.chunks) - 1)
    assert [event.margin.chunk for event in of(MarginDone, events[packed])] == list(range(len(plain.plan.chunks)))
    a, b = done(events[plain]), done(events[packed])
    assert (b.answer, b.tokens, b.chunks_read) == (a.answer, a.tokens, a.chunks_read)
    for margin, expected in zip(b.margins, a.margins, strict=True):
        assert (margin.text, margin.relevant) == (expected.text, expected.relevant)
        assert margin.probability == pytest.approx(expected.probability, abs=1e-4)
    torch.testing.assert_close(region(packed.session), region(plain.session), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop", [False, True])
def test_every_packed_margin_gets_one_verdict_also_on_a_half_read_document(folders, stop):
    wim = open_wim(folders["llama"], DOCUMENT, pack=True)
    for n, _ in enumerate(event for event in wim.ask(QUERY) if isinstance(event, ChunkRead)):
        if n == 2:
            if stop:
                wim.stop()
            else:
                break
    events = ask(wim, QUERY)
    judged = [event.margin.chunk for event in of(MarginDone, events)]
    assert judged == [margin.chunk for margin in done(events).margins] == list(range(3 if stop else len(wim.plan.chunks)))
    assert all(margin.probability is not None for margin in done(events).margins)


def test_a_loaded_model_has_joined_its_matrices(folders):
    layer = open_wim(folders["llama"], DOCUMENT).session.model.model.layers[0]
    storages = {linear.weight.untyped_storage().data_ptr() for linear in layer.self_attn.qkv.linears}
    assert len(storages) == 1 and layer.mlp.gate_up.whole is not None


# Events -------------------------------------------------------------------------------------------------------------------


@plain_readers
def test_events_come_in_order_and_add_up(folders, name):
    wim = open_wim(folders[name], DOCUMENT, keep_repeats=True)  # random texts may repeat themselves
    plan, events = wim.plan, ask(wim)
    expected = [[ChunkRead, MarginToken, Rollback, MarginDone]] * len(plan.chunks) + [[Noted, AnswerToken, Rollback, Done]]
    kinds = [type(event) for event in events]
    kinds = [kind for i, kind in enumerate(kinds) if kind not in (MarginToken, AnswerToken) or kinds[i - 1] != kind]
    assert kinds == list(chain(*expected))

    length = len(wim.prompts.header)
    rollbacks = of(Rollback, events)
    for chunk, read, back, margin in zip(
        plan.chunks, of(ChunkRead, events), rollbacks, of(MarginDone, events), strict=False
    ):
        length, prompt = length + len(chunk.ids), len(margin_prompts(wim)[chunk.index])
        assert read == ChunkRead(chunk.index, len(plan.chunks), len(chunk.ids), length)
        assert back.new_length == length
        # The prompt and the margin were there; its last token may not have been.
        assert length + prompt <= back.old_length <= length + prompt + plan.settings.margin_tokens
        assert (margin.margin.chunk, margin.margin.start, margin.margin.end) == (chunk.index, chunk.start, chunk.end)
        assert 0 < margin.margin.probability < 1
        assert margin.margin.relevant == (margin.margin.probability >= 0.5)
    last = done(events)
    assert rollbacks[-1].new_length == wim.session.length == length
    assert rollbacks[-1].old_length - length >= last.tokens["final_prompt"]
    assert last.chunks_read == len(plan.chunks)
    assert last.margins == [event.margin for event in of(MarginDone, events)]

    verdicts = sum(len(plan.classifier_prompts.verdict(QUERY, margin.text)) for margin in last.margins)
    relevant = [margin.text for margin in last.margins if margin.relevant]
    assert last.tokens["document"] == plan.document_tokens
    assert last.tokens["verdicts"] == verdicts
    assert last.tokens["final_prompt"] == len(wim.prompts.answer_with_margins(QUERY, relevant))
    assert 0 < last.tokens["margins"] <= 10 * len(plan.chunks) and 0 < last.tokens["answer"] <= 9
    assert set(last.seconds) == {"prefill", "margins", "verdicts", "answer"}
    assert all(seconds > 0 for seconds in last.seconds.values())


def test_margins_of_a_window_grow_side_by_side_and_are_judged_together(folders):
    wim = open_wim(folders["llama"], DOCUMENT, margin_window=2)
    events = ask(wim)
    first = [type(event) for event in events[: events.index(of(MarginDone, events)[1]) + 1]]
    assert first[:2] == [ChunkRead, ChunkRead] and first[-2:] == [MarginDone, MarginDone]
    assert set(first[2:-2]) == {MarginToken}  # no rollback: branches lie above the length, which never moved
    chunks = [event.chunk for event in of(MarginToken, events) if event.chunk < 2]
    assert chunks != sorted(chunks)  # a few words of one, a few of the other


@plain_readers
@pytest.mark.parametrize("window", [1, 2, None])
def test_stopping_early_answers_from_what_was_read(folders, name, window):
    wim = open_wim(folders[name], DOCUMENT, margin_window=window, keep_repeats=True)

    def stop_at_the_second_chunk(event):
        if isinstance(event, ChunkRead) and event.chunk == 1:
            wim.stop()

    last = done(ask(wim, on=stop_at_the_second_chunk))
    assert last.chunks_read == 2 and [margin.chunk for margin in last.margins] == [0, 1]
    session = plainly_read(wim, wim.plan.chunks[:2])
    assert torch.equal(region(wim.session), region(session))
    prompt = wim.prompts.answer_with_margins(QUERY, [margin.text for margin in last.margins if margin.relevant])
    assert last.answer == reply(session, prompt, wim, 9)
    again = done(ask(wim))  # and so do later questions
    assert (again.chunks_read, again.tokens["document"]) == (2, 0)


def test_stopped_before_anything_was_read_the_first_chunk_is_read(folders):
    wim = open_wim(folders["llama"], DOCUMENT)
    wim.stop()
    last = done(ask(wim))
    assert last.chunks_read == 1 and len(last.margins) == 1 and last.answer


@plain_readers
def test_the_caller_can_overrule_a_verdict(folders, name):
    """Dropping all margins but one that was judged irrelevant, or keeping all: the final prompt holds just these."""
    for keep in (lambda margin: margin.chunk == 2, lambda margin: True, lambda margin: False):
        wim = open_wim(folders[name], DOCUMENT, keep_repeats=True)
        read = tokens_read(wim)

        def overrule(event, keep=keep):
            if isinstance(event, MarginDone):
                event.margin.relevant = keep(event.margin)

        last = done(ask(wim, on=overrule))
        assert [margin.relevant for margin in last.margins] == [keep(margin) for margin in last.margins]
        kept = [margin.text for margin in last.margins if keep(margin)]
        assert wim.prompts.answer_with_margins(QUERY, kept) in read


@plain_readers
@pytest.mark.parametrize("margins", ["written", "underlined", "both"])
def test_the_caller_can_hold_on_before_the_answer(folders, name, margins):
    """Drop, rewrite and add: the answer is written from what is in the list when the next event is asked for."""
    wim = open_wim(folders[name], DOCUMENT, margins=margins, threshold=0.0)
    read, n_chunks = tokens_read(wim), len(wim.plan.chunks)

    events = []
    for event in wim.ask(QUERY):
        events.append(event)
        if isinstance(event, Noted):
            told = [event.margin for event in of(MarginDone, events)]
            assert sorted(map(id, event.margins)) == sorted(map(id, told))  # the very same, in the document's order
            for margin in event.margins[1:]:
                margin.relevant = False
            event.margins[0].rewrite("Mary is on the moon.")
            event.margins.append(Margin.added(wim.plan.chunks[-1], "She likes it there."))
    assert wim.prompts.answer_with_margins(QUERY, ["Mary is on the moon.", "She likes it there."]) in read
    first, *_, last = done(events).margins
    assert (first.relevant, first.probability, first.score, first.by_hand) == (True, None, None, False)
    assert (last.chunk, last.by_hand) == (n_chunks - 1, True)
    assert of(Noted, events)[0].margins == done(events).margins


@pytest.mark.parametrize("threshold, expected", [(0.0, True), (1.0, False)])
def test_the_threshold_decides(folders, threshold, expected):
    wim = open_wim(folders["llama"], DOCUMENT, threshold=threshold)
    assert {margin.relevant for margin in done(ask(wim)).margins} == {expected}


# More than one question ---------------------------------------------------------------------------------------------------


@random_readers
@pytest.mark.parametrize("pattern", ["wim", "llm"])
def test_a_second_question_needs_no_prefill_and_gets_the_answer_of_a_fresh_run(folders, name, pattern):
    first = open_wim(folders[name], DOCUMENT, [QUERY, OTHER], pattern=pattern)
    fresh = open_wim(folders[name], DOCUMENT, [QUERY, OTHER], pattern=pattern)
    ask(first, QUERY)
    events, expected = ask(first, OTHER), done(ask(fresh, OTHER))
    second = done(events)
    assert not of(ChunkRead, events) and second.tokens["document"] == 0
    assert second.answer == expected.answer
    assert [margin.text for margin in second.margins] == [margin.text for margin in expected.margins]
    for margin, other in zip(second.margins, expected.margins, strict=True):
        assert margin.probability == pytest.approx(other.probability, abs=1e-4)
    again = done(ask(first, OTHER))
    assert (again.answer, again.margins) == (second.answer, second.margins)


ABANDONED = {
    "a chunk": lambda event: isinstance(event, ChunkRead) and event.chunk == 1,
    "a margin": lambda event: isinstance(event, MarginToken) and event.chunk == 1,
    "a verdict": lambda event: isinstance(event, MarginDone) and event.margin.chunk == 1,
    "a rollback": lambda event: isinstance(event, Rollback),
    "the answer": lambda event: isinstance(event, AnswerToken),
    "a judged chunk": lambda event: isinstance(event, ChunkJudged) and event.chunk == 1,
}


@pytest.mark.parametrize("at", ABANDONED)
@pytest.mark.parametrize("options", [{}, {"pack": True}, {"margin_window": 2}, {"pattern": "rag"}], ids=str)
def test_a_question_that_was_walked_away_from_leaves_no_trace(folders, options, at):
    """In a notebook somebody breaks out of the loop over the events, and asks something else."""
    wim, fresh = (open_wim(folders["llama"], DOCUMENT, [QUERY, OTHER], **options) for _ in range(2))
    for event in wim.ask(QUERY):
        if ABANDONED[at](event):
            break
    for query in (OTHER, QUERY):
        found, expected = done(ask(wim, query)), done(ask(fresh, query))
        assert (found.answer, found.chunks_read) == (expected.answer, expected.chunks_read)
        assert [margin.text for margin in found.margins] == [margin.text for margin in expected.margins]
    assert wim.session.length == fresh.session.length
    torch.testing.assert_close(region(wim.session), region(fresh.session), rtol=1e-4, atol=1e-4)


def test_a_reader_reads_one_document_after_another(folders):
    """With the same weights and caches, and as if each were the first."""
    checkpoint, cpu = Checkpoint.open(str(folders["phi3-longrope"])), torch.device("cpu")
    shared = Reader(checkpoint, checkpoint, sessions.Sessions(cpu, torch.float32))
    models = set()
    for text in (document(2), DOCUMENT, document(5)):
        wim = shared.open(
            make_plan(checkpoint, text, [QUERY], open_wim(checkpoint.folder, text).settings, Prompts(), checkpoint)
        )
        found, expected = done(ask(wim)), done(ask(open_wim(checkpoint.folder, text)))
        assert (found.answer, found.margins, found.tokens) == (expected.answer, expected.margins, expected.tokens)
        models.add(id(wim.session.model))
    assert len(models) == 1


@pytest.mark.parametrize(("said", "kept"), [("<think>\nHm.</think>\n\nThe office.", "The office."), ("<think>Hm", "")])
def test_thoughts_are_neither_told_nor_kept(folders, monkeypatch, said, kept):
    wim = open_wim(folders["llama"], DOCUMENT, classifier=None)
    ids = wim.prompts.tokenizer.encode(said)
    monkeypatch.setattr(wim.session, "generate", lambda *arguments: iter(ids))
    events = ask(wim)  # it compares what events tell with the texts
    assert done(events).answer == kept and {margin.text for margin in done(events).margins} == {kept}
    assert done(events).tokens["answer"] == len(ids)
