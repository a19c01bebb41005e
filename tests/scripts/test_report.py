"""The report: what is recorded of a run, and a page that shows it and holds every text as data."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from cli.documents import Document
from report import Recorder, Strip, check_report, write_report
from report import page as page_module
from report.page import page
from report.passages import FOLDED_FROM
from wim_helpers import DOCUMENT, OTHER, QUERY, SMALL_RUN, document, open_wim, tokens_read, write_reader

from scripts import generate
from wim.events import Done, Margin, MarginDone, MarginToken

HOSTILE = "<script>alert(1)</script> & </div><!-- \" ' $query {query} \x07 \u202e. Mary went home.\n\n" * 3 + DOCUMENT
VOID = {"meta", "link", "br", "input"}
RUNS = {
    "paper": {},
    "window": {"margin_window": None},
    "pack": {"pack": True},
    "underlined": {"margins": "underlined"},
    "both": {"margins": "both", "margin_window": 2},
    "llm": {"pattern": "llm"},
    "rag": {"pattern": "rag", "threshold": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_reader(tmp_path_factory.mktemp("reader") / "model", "llama")


def record(wim, *queries, stop_after=None):
    recorder = Recorder(wim)
    for query in queries or (QUERY,):
        for event in recorder.follow(query, wim.ask(query)):
            if stop_after is not None and isinstance(event, MarginDone) and event.margin.chunk == stop_after:
                wim.stop()
    return recorder


def shown(recorder, text=DOCUMENT, name="document.txt"):
    return page(recorder, Document(text, name), "a model on cpu")


class Read(HTMLParser):
    """A page as a browser would see it: fails where tags do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.document, self.folded, self.marked, self.notes = [], [], "", "", [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("class", "")))
        if tag in ("u", "mark"):
            self.marked.append("")
        if tag == "small":
            self.notes.append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if "small" in inside:
            self.notes[-1] += data
        elif any(kind == "text" for _, kind in self.open) and not any(kind == "cut" for _, kind in self.open):
            self.document += data
            if "details" in inside:
                self.folded += data
            if "u" in inside or "mark" in inside:
                self.marked[-1] += data


# What is recorded ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_steps_lead_from_an_empty_cache_to_its_length_in_the_end(folder, run):
    wim = open_wim(folder, DOCUMENT, [QUERY, OTHER], **RUNS[run])
    recorder = record(wim, QUERY, OTHER)
    first, second = recorder.recordings
    for recording in (first, second):
        length, row = 0, -1
        for step in recording.steps:
            assert step.row >= row and 0.0 <= step.began <= step.ended
            row = step.row
            if step.kind == "branch":
                assert step.start == len(wim.prompts.header) + wim.plan.chunks[step.chunk].end < step.end
                continue
            assert step.start == length and (step.end < length if step.kind == "rollback" else step.end > length)
            length = step.end
            assert length <= wim.plan.capacity
        kept = [step for step in recording.steps if step.until is None and step.kind not in ("branch", "rollback")]
        assert sum(step.end - step.start for step in kept) == length
        assert len(recording.read) == recording.done.chunks_read
        assert [step.chunk for step in kept if step.kind == "chunk"] == sorted(recording.read)
    assert length == wim.session.length
    written = {step.chunk for step in first.steps if step.kind in ("prompt", "margin", "branch")}
    told = {margin.chunk for margin in first.done.margins if margin.score is None and margin.text}
    assert told <= written and (told or RUNS[run].get("margins") == "underlined" or "pattern" in RUNS[run])


@pytest.mark.parametrize("run", ["paper", "underlined", "both"])
def test_the_notes_are_those_that_the_final_prompt_held(folder, run):
    wim = open_wim(folder, DOCUMENT, classifier=None, **RUNS[run])
    read = tokens_read(wim)
    [recording] = record(wim).recordings
    texts = [text for _, text in recording.notes if text]
    assert texts
    prompt = max((wim.prompts.tokenizer.decode(row) for row in read), key=lambda text: text.count("\n- "))
    assert prompt.count("\n- ") == len(texts)


def test_what_is_changed_later_does_not_change_the_recording(folder):
    wim = open_wim(folder, DOCUMENT, classifier=None)
    recorder = Recorder(wim)
    *_, done = recorder.follow(QUERY, wim.ask(QUERY))
    for margin in done.margins:
        margin.relevant = False
    list(recorder.follow(QUERY, wim.answer(QUERY, done.margins)))
    before, after = recorder.recordings
    assert before.notes and not after.notes


@pytest.mark.parametrize("pattern", ["wim", "llm"])
def test_what_has_no_text_is_recorded_as_well(folder, monkeypatch, pattern):
    wim = open_wim(folder, DOCUMENT, pattern=pattern)
    monkeypatch.setattr(wim.session, "generate", lambda prompt, *others: iter([wim.session.prefill(prompt)][1:]))
    recorder = record(wim, QUERY, QUERY)
    rows = [[step.kind for step in recording.steps if step.row >= 0] for recording in recorder.recordings]
    margins = ["prompt", "rollback"] if pattern == "wim" else []
    chunks = [kind for _ in wim.plan.chunks for kind in ["chunk", *margins]]
    assert rows[0] == ["header", *chunks, "final", "rollback"] and rows[1][-2:] == ["final", "rollback"]


def test_a_question_left_midway_does_not_count_for_the_next(folder):
    wim = open_wim(folder, DOCUMENT)
    for event in wim.ask(QUERY):
        if isinstance(event, MarginToken):
            break
    [recording] = record(wim).recordings
    assert [(step.kind, step.row) for step in recording.steps[:3]] == [("header", -1), ("chunk", -1), ("prompt", 0)]
    assert recording.read == set(range(len(wim.plan.chunks)))


def test_a_question_that_is_not_answered_leaves_nothing(folder):
    wim, calls = open_wim(folder, DOCUMENT), []
    recorder = Recorder(wim, calls.append)
    events = recorder.follow(QUERY, wim.ask(QUERY))
    next(events)
    events.close()
    assert recorder.recordings == calls == []
    list(recorder.follow(QUERY, wim.ask(QUERY)))
    assert len(recorder.recordings) == 1 and calls == [recorder]


# What the page holds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_the_page_holds_the_whole_document_and_obeys_nothing_in_it(folder, run):
    hostile = "Where is </title><img src=x onerror=alert(1)> \ud800?"
    wim = open_wim(folder, HOSTILE, [hostile, QUERY], **RUNS[run])
    html = shown(record(wim, hostile, QUERY, stop_after=2), HOSTILE, "<b>.txt")
    read = Read(html.encode("utf-8").decode("utf-8"))
    assert read.document == HOSTILE.replace("\x07", "\N{REPLACEMENT CHARACTER}")
    assert sum(tag == "script" for tag, _ in read.tags) == 1 and "img" not in dict(read.tags)
    assert not any(name.startswith("on") or name == "src" for _, attributes in read.tags for name in attributes)
    anchors = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    links = [attributes["href"] for _, attributes in read.tags if "href" in attributes]
    assert all(link == "data:," or link.removeprefix("#") in anchors for link in links)


def test_only_its_own_script_may_run(folder):
    html = shown(record(open_wim(folder, DOCUMENT)))
    [script] = re.findall(r"<script>(.*)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="(.*)"', html)
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_underlined_sentences_are_underlined_where_they_stand(folder):
    wim = open_wim(folder, DOCUMENT, margins="underlined")
    recorder = record(wim)
    read = Read(shown(recorder))
    margins = sorted(recorder.recordings[0].done.margins, key=lambda margin: margin.start)
    marked = [(attributes["class"], attributes["style"]) for tag, attributes in read.tags if tag == "u"]
    assert read.marked == [margin.text for margin in margins]
    assert marked == [("yes" if m.relevant else "no", f"--score:{m.score:.3f}") for m in margins]


def test_a_long_document_is_folded_but_for_what_was_found(folder):
    wim = open_wim(folder, DOCUMENT)
    recorder = record(wim)
    text = document(3000)
    assert len(text) > FOLDED_FROM
    recorder.wim = open_wim(write_reader(folder.parent / "long", "llama", max_position_embeddings=80_000), text)
    margin = Margin(100, 0, 1, "Mary has gone somewhere.", True, 0.9)
    recorder.recordings[0].done = Done("home", [margin], 1)
    recorder.recordings[0].notes = [(margin, margin.text)]
    read = Read(shown(recorder, text))
    assert read.document == text
    assert len(text) - 5000 < len(read.folded) < len(text)
    assert [note.strip() for note in read.notes] == ["Mary has gone somewhere. ✓ relevant0.90"]


def test_a_strip_is_an_svg_by_itself(folder):
    wim = open_wim(folder, DOCUMENT)
    [recording] = record(wim).recordings
    svg = Strip(recording.steps, wim.plan.capacity)._repr_svg_()
    Read(svg)
    assert svg.startswith("<svg xmlns=") and svg.count("<g ") == 1 + max(step.row for step in recording.steps)
    assert f"{wim.plan.capacity:,}" not in svg and f"→ {wim.session.length:,}" in svg


# Where it is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path, what", [("", "is no file"), ("no/where.html", "cannot be written (No such file")])
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys, path, what):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "open_checkpoints", lambda args: pytest.fail("the checkpoint is opened"))
    assert generate.main(["--report", str(tmp_path / path)]) == 2
    captured = capsys.readouterr()
    assert what in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_document_itself_is_not_replaced(tmp_path, capsys):
    path = tmp_path / "book.txt"
    path.write_text(DOCUMENT, encoding="utf-8")
    given = ["--context", str(path), "--query", QUERY, "--report", str(tmp_path / "." / "book.txt")]
    assert generate.main(given) == 2
    assert "is the file that the question is about" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == DOCUMENT


def test_what_fails_leaves_the_report_of_before(folder, tmp_path, monkeypatch):
    path = tmp_path / "run.html"
    path.write_text("before")
    check_report(str(path))

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_module, "page", fails)
    with pytest.raises(OSError):
        write_report(str(path), Recorder(open_wim(folder, DOCUMENT)), Document(DOCUMENT, ""), "")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(folder, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.html").symlink_to(tmp_path / "folder" / "there.html")
    check_report(str(tmp_path / "run.html"))
    write_report(str(tmp_path / "run.html"), record(open_wim(folder, DOCUMENT)), Document(DOCUMENT, "a.txt"), "a model")
    assert (tmp_path / "run.html").is_symlink() and Read(
        (tmp_path / "folder" / "there.html").read_text()
    ).document == DOCUMENT


def test_generate_writes_it(folder, tmp_path, capsys):
    (tmp_path / "context.txt").write_text(DOCUMENT, encoding="utf-8")
    files = ["--model", str(folder), "--context", str(tmp_path / "context.txt"), "--report", str(tmp_path / "run.html")]
    assert generate.main([*files, *SMALL_RUN, "--query", QUERY, "--query", OTHER]) == 0
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    read = Read(html)
    assert read.document == DOCUMENT
    assert [attributes.get("id") for tag, attributes in read.tags if tag == "section"] == ["q1", "q2", None]
    assert QUERY in html and OTHER in html and "context.txt" in html
