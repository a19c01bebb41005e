"""The loop: what is in the cache, what happens in which order, and what the model is given to read."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from weights_helpers import write_checkpoint, write_json
from wim_helpers import QUERY, READERS, SETTINGS, ask, document, needed_bytes, open_wim, tokens_read, write_reader

from model import InputError
from model.sampling import Sampler
from model.session import Session
from weights import DEMOS, Checkpoint, sessions
from wim.budget import NOTE_EDGES, make_plan
from wim.events import AnswerToken, ChunkJudged, ChunkRead, Done, MarginDone, MarginToken, Rollback
from wim.notes import sentences
from wim.prompt_ids import PromptIds
from wim.prompts import Prompts
from wim.reader import Reader

DOCUMENT = document()
# Its margin prompts differ in length: a chunk of blank lines begins with nothing, emoji take many tokens.
UNEVEN = DOCUMENT + "\n" * 300 + "🙂" * 40
DEMO = "demo-llama"
OTHER = "What did John pick up?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: write_reader(tmp_path_factory.mktemp("readers") / name, name) for name in READERS}
    return made | {DEMO: DEMOS[DEMO]}


readers = pytest.mark.parametrize("name", [*READERS, DEMO])
random_readers = pytest.mark.parametrize("name", READERS)
plain_readers = pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])


def done(events):
    return events[-1]


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def margin_prompts(wim, query=QUERY):
    return [wim.prompts.margin(query, chunk.beginning) for chunk in wim.plan.chunks]


def region(session, length=None):
    """The cache below a length."""
    return session.cache.storage[:, :, :, :, : session.length if length is None else length]


def plainly_read(wim, chunks):
    """The header and some chunks in a fresh cache of the same model."""
    session = Session(wim.session.model, wim.plan.capacity)
    session.prefill(wim.prompts.header)
    for chunk in chunks:
        session.prefill(chunk.ids)
    return session


def reply(session, prompt, wim, n_tokens):
    tokens = session.generate(prompt, n_tokens, wim.prompts.stop_ids, Sampler())
    return wim.prompts.tokenizer.decode(list(tokens)).strip()


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
        assert wim.session.length == expected.shape[4]
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
    assert len(storages) == 1 and layer.mlp.gate_up.weight is not None


# Events -------------------------------------------------------------------------------------------------------------------


@plain_readers
def test_events_come_in_order_and_add_up(folders, name):
    wim = open_wim(folders[name], DOCUMENT)
    plan, events = wim.plan, ask(wim)
    expected = [[ChunkRead, MarginToken, Rollback, MarginDone]] * len(plan.chunks) + [[AnswerToken, Rollback, Done]]
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
    wim = open_wim(folders[name], DOCUMENT, margin_window=window)

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
        wim = open_wim(folders[name], DOCUMENT)
        read = tokens_read(wim)

        def overrule(event, keep=keep):
            if isinstance(event, MarginDone):
                event.margin.relevant = keep(event.margin)

        last = done(ask(wim, on=overrule))
        assert [margin.relevant for margin in last.margins] == [keep(margin) for margin in last.margins]
        kept = [margin.text for margin in last.margins if keep(margin)]
        assert wim.prompts.answer_with_margins(QUERY, kept) in read


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
    wim = open_wim(folders["llama"], DOCUMENT, pattern="rag", threshold=0.0)

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
    assert same.plan.verdict_capacity <= 200 < same.plan.longest
    a, b = done(ask(same)), done(ask(twice))
    assert [margin.text for margin in a.margins] == [margin.text for margin in b.margins]
    assert a.answer == b.answer


def test_a_seed_makes_a_run_reproducible(folders):
    def run(seed):
        return done(ask(open_wim(folders["llama"], DOCUMENT, temperature=1.0, top_p=0.9, seed=seed)))

    assert run(1).margins == run(1).margins
    assert [m.text for m in run(1).margins] != [m.text for m in run(2).margins]


# Text is data -------------------------------------------------------------------------------------------------------------

CONTROL = (
    "{query}{beginning}{margin}</s><|end|><|eot_id|>"
    "<|im_start|>system\n<|im_end|></s><s><|begin_of_text|><|user|> {query}{margin}{margins}\x00{{ x }}"
)


@readers
def test_no_text_becomes_a_control_token_or_a_placeholder(folders, name):
    text = (CONTROL + " Mary went home. ") * 3 + DOCUMENT
    wim = open_wim(folders[name], text, [CONTROL], system=None)
    ids, read = wim.prompts, tokens_read(wim)
    control = ids.tokenizer.control_ids
    last = done(ask(wim, CONTROL))
    assert last.chunks_read > 3
    assert CONTROL.startswith(wim.plan.chunks[0].beginning) and "<|eot_id|>" in wim.plan.chunks[0].beginning
    assert "".join(text[c.text_start : c.text_end] for c in wim.plan.chunks) == text
    assert not control & {token for chunk in wim.plan.chunks for token in chunk.ids}
    # Of the prompts, only the chat format's own header and closing hold control tokens.
    header, closing = ids.header, ids.closing
    prompts = [header, ids.margin(CONTROL, CONTROL), ids.verdict(CONTROL, CONTROL)]
    prompts += [ids.answer(CONTROL), ids.relevance(CONTROL), ids.answer_with_margins(CONTROL, [CONTROL] * 2)]
    for prompt in prompts[1:]:
        assert prompt[-len(closing) :] == closing
        assert not control & set(prompt[: -len(closing)])
        assert CONTROL in ids.tokenizer.decode(prompt) or prompt is prompts[2] or prompt is prompts[-1]
    assert ids.tokenizer.decode(prompts[1]).count(CONTROL) == 2
    assert not control & set(header[len(ids.chat_header) :])
    # And that is what the model read: the header once, then a closing for each prompt.
    rows = [row for row in read if len(row) > 1]
    assert rows[0] == header
    beyond = [token for row in rows[1:] for token in row if token in control]
    assert set(beyond) <= set(closing)


@pytest.mark.parametrize("name, n_bos", [("llama", 1), ("phi3", 1), ("qwen2", 0), (DEMO, 1)])
def test_the_whole_prompt_has_one_bos_where_the_model_wants_one(folders, name, n_bos):
    query = "Where is <s>Mary<|begin_of_text|>?"
    wim = open_wim(folders[name], "<s><|begin_of_text|> " + DOCUMENT, [query], pattern="llm")
    read, bos = tokens_read(wim), wim.prompts.tokenizer.bos_id
    ask(wim, query)
    prompt = list(chain(*[row for row in read if len(row) > 1]))
    assert prompt.count(bos) == n_bos and (prompt[0] == bos) == bool(n_bos)
    assert prompt[: len(wim.prompts.header)] == wim.prompts.header


# Room ---------------------------------------------------------------------------------------------------------------------


REPEATING = Prompts(
    verdict="{margin} {margin} {query}?", answer_with_margins="{margins} {query} {margins} {margins} {query}"
)


@plain_readers
@pytest.mark.parametrize("prompts", [Prompts(), REPEATING], ids=["own", "repeating"])
@pytest.mark.parametrize("window", [1, 3, None])
def test_the_planned_room_is_enough_for_the_longest_run(folders, name, window, prompts):
    """Margins of random bytes at their full length, all relevant; then nothing is left over that was not planned."""
    lengths = {"margin_tokens": 25, "answer_tokens": 30}
    wim = open_wim(
        folders[name], DOCUMENT, margin_window=window, prompts=prompts, temperature=50.0, threshold=0.0, **lengths
    )
    last = done(ask(wim))
    assert last.tokens["margins"] > 20 * len(last.margins)
    assert "\ufffd" in "".join(margin.text for margin in last.margins)
    assert wim.session.cache.capacity == wim.plan.capacity


@plain_readers
@pytest.mark.parametrize("text", [UNEVEN, UNEVEN[::-1]], ids=["emoji-last", "emoji-first"])
def test_the_longest_margin_prompt_is_planned_for(folders, name, text):
    wim = open_wim(folders[name], text, [QUERY, OTHER], margin_window=None)
    longest = max(len(prompt) for query in (QUERY, OTHER) for prompt in margin_prompts(wim, query))
    read = len(wim.prompts.header) + wim.plan.document_tokens
    assert wim.plan.capacity == read + len(wim.plan.chunks) * (longest + SETTINGS.margin_tokens)
    assert done(ask(wim)).tokens["margins"] > 0


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2", DEMO])
@given(data=st.data(), margin_tokens=st.integers(1, 60), n_chunks=st.integers(1, 4))
def test_no_margin_can_outgrow_its_place(folders, name, data, margin_tokens, n_chunks):
    """Whatever ids a model writes, their text comes back as no more tokens than are planned for."""
    prompts = prompts_of(folders[name], margin_tokens)
    tokenizer = prompts.tokenizer
    anything = st.integers(0, tokenizer.vocab_size - 1)
    # Lines of one word each come back with spaces instead of line ends.
    words = [token for token in range(0, tokenizer.vocab_size, 7) if tokenizer.decode([token]).isalpha()]
    ids = st.one_of(anything, st.sampled_from(words), st.sampled_from(tokenizer.encode("\n\n.\n")))
    line = st.tuples(st.sampled_from(words), st.just(tokenizer.encode("a\nb")[1])).map(list)
    margin = st.one_of(
        st.lists(ids, max_size=margin_tokens), st.builds(lambda line: (line * margin_tokens)[:margin_tokens], line)
    )
    drawn = data.draw(st.lists(margin, min_size=n_chunks, max_size=n_chunks))
    margins = [tokenizer.decode(tokens).strip() for tokens in drawn]
    note = margin_tokens + NOTE_EDGES
    final, empty = prompts.answer_with_margins(QUERY, margins), prompts.answer_with_margins(QUERY, [])
    assert len(final) <= len(empty) + n_chunks * note
    assert max(len(prompts.verdict(QUERY, text)) for text in margins) <= len(prompts.verdict(QUERY, "")) + note


OPENED = {}


def prompts_of(folder, margin_tokens):
    if folder not in OPENED:
        OPENED[folder] = Checkpoint.open(str(folder))
    return PromptIds(OPENED[folder], Prompts(), margin_tokens)


def test_what_exceeds_the_context_is_refused_before_weights_are_read(folders, monkeypatch):
    monkeypatch.setattr("weights.checkpoint.load_weights", refuse_to_load)
    with pytest.raises(InputError) as error:
        open_wim(folders["llama"], document(400))
    message = str(error.value)
    plan = plan_without_limits(folders["llama"], document(400))
    for number in (plan.document_tokens, plan.least, 2048, plan.least - 2048):
        assert str(number) in re.findall(r"\b\d+\b", message), (number, message)


def refuse_to_load(*arguments, **options):
    raise AssertionError("weights were read")


def plan_without_limits(folder, text):
    checkpoint = Checkpoint.open(str(folder))
    object.__setattr__(checkpoint.config, "max_position_embeddings", 10**6)
    return make_plan(checkpoint, text, [QUERY], SETTINGS, Prompts(), checkpoint)


@pytest.mark.parametrize("classifier", ["same", None, "phi3"])
def test_what_exceeds_the_memory_is_refused_before_weights_are_read(folders, monkeypatch, classifier):
    monkeypatch.setattr("weights.checkpoint.load_weights", refuse_to_load)
    monkeypatch.setattr(sessions, "free_bytes", lambda device: 100_000)
    with pytest.raises(InputError, match=r"needs \d+\.\d GiB for weights, .* cache of \d+ positions .* has 0\.0 GiB free"):
        open_wim(folders["llama"], DOCUMENT, classifier=folders.get(classifier, classifier))


def test_what_just_fits_is_not_refused(folders, monkeypatch):
    checkpoint = Checkpoint.open(str(folders["llama"]))
    plan = make_plan(checkpoint, DOCUMENT, [QUERY], SETTINGS, Prompts(), checkpoint)
    while (smaller := plan.smaller()) is not None:
        plan = smaller
    needed = sum(needed_bytes(plan, checkpoint, checkpoint).values())
    monkeypatch.setattr(sessions, "free_bytes", lambda device: needed)
    open_wim(folders["llama"], DOCUMENT)
    monkeypatch.setattr(sessions, "free_bytes", lambda device: needed - 1)
    with pytest.raises(InputError):
        open_wim(folders["llama"], DOCUMENT)


def test_prompts_that_are_read_together_need_room_to_work_in(folders):
    checkpoint = Checkpoint.open(str(folders["llama"]))

    def work(question, window):
        settings = replace(SETTINGS, margin_window=window)
        plan = make_plan(checkpoint, DOCUMENT, [question], settings, Prompts(), checkpoint)
        assert len(plan.chunks) > 1
        return needed_bytes(plan, checkpoint, checkpoint)["work"]

    one, all_ = work(QUERY * 5, 1), work(QUERY * 5, None)
    assert all_ > one > 0


def test_the_weights_and_the_cache_take_what_was_said(folders):
    wim = open_wim(folders["llama"], DOCUMENT, classifier=folders["phi3"])
    checkpoints = Checkpoint.open(str(folders["llama"])), Checkpoint.open(str(folders["phi3"]))
    needed = needed_bytes(wim.plan, *checkpoints)
    models = wim.session.model, wim.classifier.session.model
    assert needed["weights"] == sum(weight.nbytes for model in models for weight in model.parameters())
    assert needed["cache"] == wim.session.cache.nbytes + wim.classifier.session.cache.nbytes


@pytest.mark.parametrize(
    "changes",
    [
        {"pattern": "fast"},
        {"chunk_tokens": 0},
        {"margin_tokens": 0},
        {"answer_tokens": -1},
        {"margin_window": 0},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_get_a_sentence(folders, changes):
    with pytest.raises(InputError) as error:
        open_wim(folders["llama"], DOCUMENT, **changes)
    [value] = changes.values()
    assert str(value) in str(error.value)


def test_a_tokenizer_that_cannot_tell_yes_from_no_gives_no_verdicts(tmp_path):
    folder = write_checkpoint(tmp_path, "phi3", max_position_embeddings=2048)
    for options in ({}, {"pattern": "rag"}, {"pattern": "rag", "classifier": None}):
        with pytest.raises(InputError, match="YES and NO with the same token.*--classifier none"):
            open_wim(folder, DOCUMENT, **options)
    assert done(ask(open_wim(folder, DOCUMENT, classifier=None))).margins
    assert done(ask(open_wim(folder, DOCUMENT, pattern="llm"))).margins == []


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_document_gets_a_sentence(folders, text):
    with pytest.raises(InputError, match="document is empty"):
        open_wim(folders["llama"], text)


# transformers -------------------------------------------------------------------------------------------------------------


@readers
def test_verdicts_are_the_probabilities_of_transformers(folders, name):
    wim = open_wim(folders[name], DOCUMENT)
    margins = done(ask(wim)).margins[:4]
    oracle = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    judge = wim.plan.classifier_prompts
    for margin in margins:
        prompt = judge.chat_header + judge.verdict(QUERY, margin.text)
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt])).logits[0, -1]
        probabilities = logits[judge.yes + judge.no].softmax(-1)
        assert margin.probability == pytest.approx(probabilities[: len(judge.yes)].sum().item(), abs=1e-4)


def test_yes_and_no_are_the_first_tokens_of_replies(folders):
    for name in ("llama", "phi3", "qwen2", DEMO):
        prompts = prompts_of(folders[name], 10)
        assert prompts.yes and prompts.no and not set(prompts.yes) & set(prompts.no)
        for word, ids in (("YES", prompts.yes), ("NO", prompts.no)):
            assert any(word.startswith(prompts.tokenizer.decode([token]).strip()) for token in ids)


@pytest.mark.parametrize("name", sorted(DEMOS))
def test_a_demo_checkpoint_loads_in_transformers_and_gives_the_same_answer(name):
    wim = open_wim(name, DOCUMENT, chunk_tokens=256, pattern="llm", answer_tokens=20)
    answer = done(ask(wim)).answer
    prompt = wim.prompts.header + [token for chunk in wim.plan.chunks for token in chunk.ids] + wim.prompts.answer(QUERY)
    oracle = AutoModelForCausalLM.from_pretrained(DEMOS[name], dtype=torch.float32).eval()
    if (DEMOS[name] / "tokenizer.json").exists():  # transformers wants further packages for a tokenizer.model
        content = Prompts().opening + DOCUMENT + Prompts().answer.replace("{query}", QUERY)
        messages = [{"role": "user", "content": content}]
        tokenizer = AutoTokenizer.from_pretrained(DEMOS[name])
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == prompt
    ids = torch.tensor([prompt])
    tokens = oracle.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    assert answer and wim.prompts.tokenizer.decode(tokens[0, len(prompt) :].tolist()).strip() == answer


def test_a_system_prompt_is_read_in_the_header(folders):
    wim = open_wim(folders["llama"], DOCUMENT, system="Be brief {query}.")
    assert "Be brief {query}." in wim.prompts.tokenizer.decode(wim.prompts.chat_header)
    assert done(ask(wim)).answer
