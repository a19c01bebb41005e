"""generate.py with a person: every command of the prompt, the review before an answer, and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import keyboard
from cli.prompt import with_room
from cli.terminal import Terminal
from screen import shown
from wim_helpers import OTHER, QUERY, SMALL_RUN, document, write_reader

from model import InputError
from model.errors import DoesNotFit
from scripts import generate
from weights import Checkpoint
from wim.events import AnswerToken, ChunkRead, MarginDone, Noted

ROOT = Path(__file__).parents[2]
SMALL = [*SMALL_RUN, "--margins", "written", "--margin-tokens", "20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt")
    write_reader(folder / "model", "llama")
    write_reader(folder / "long", "llama", max_position_embeddings=65536)
    (folder / "context.txt").write_text(document(24), encoding="utf-8")
    return folder


@pytest.fixture
def session(folder, capsys, monkeypatch, tmp_path):
    """Types lines; returns the exit code, stdout, stderr, and what /save wrote at the end."""
    monkeypatch.chdir(tmp_path)

    def run(*lines, options=("--interactive", "--query", QUERY), context=folder / "context.txt", model="model"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        given = ["--model", str(folder / model), "--context", str(context), *SMALL, *options]
        code = generate.main(given)
        captured = capsys.readouterr()
        saved = json.loads(Path("saved").read_text(encoding="utf-8"))["results"] if Path("saved").exists() else None
        Path("saved").unlink(missing_ok=True)
        return code, captured.out, captured.err, saved

    return run


class Typed(io.StringIO):
    """Lines that somebody types; ^C is no line."""

    def isatty(self):
        return True

    def readline(self):
        if (line := super().readline()) == "^C\n":
            signal.raise_signal(signal.SIGINT)
        return line


def interrupt_at(monkeypatch, kind, times):
    """Ctrl-C, once or more, as this kind of event is first shown."""
    left, show = [kind] * times, Terminal.show

    def interrupted(self, event):
        show(self, event)
        while left and isinstance(event, kind):
            left.pop()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Terminal, "show", interrupted)


# Questions ----------------------------------------------------------------------------------------------------------------


def test_another_question_is_answered_without_reading_again(session):
    code, out, err, [first, second] = session(OTHER, "/save saved")
    assert code == 0 and (first["query"], second["query"]) == (QUERY, OTHER)
    assert first["tokens"]["document"] > 0 and second["tokens"]["document"] == 0
    assert out == f"{first['answer']}\n{second['answer']}\n" and f"question: {OTHER}" in err
    for result in (first, second):
        _, _, _, [alone] = session("/save saved", options=("--interactive", "--query", result["query"]))
        assert alone["answer"] == result["answer"]
        assert [margin["text"] for margin in alone["margins"]] == [margin["text"] for margin in result["margins"]]


def test_all_questions_can_come_from_the_prompt(session):
    code, out, _, [only] = session("", "/again", QUERY, "/save saved", "/quit", OTHER, options=("--interactive",))
    assert code == 0 and only["query"] == QUERY and out == f"{only['answer']}\n"


def test_a_question_that_is_too_long_gets_the_numbers_and_the_prompt_goes_on(session):
    code, _, err, [_, last] = session("Mary? " * 2000, OTHER, "/save saved")
    assert code == 0 and last["query"] == OTHER
    assert re.search(r"error: The question has \d+ tokens .* needs \d+ positions and has \d+; shorten it", err)


@pytest.mark.parametrize("limit, room", [(999, 256), (150, 128), (70, 64), (33, 32), (20, None)])
def test_the_room_for_questions_is_less_where_the_context_is_short(limit, room):
    """A document that leaves little room is not refused for the sake of questions that nobody has asked yet."""
    tokenizer = Checkpoint.open("demo-llama").tokenizer

    def opened(queries):
        longest = max(len(tokenizer.encode(query)) for query in queries)
        if longest > limit:
            raise DoesNotFit("No.")
        return longest

    own = len(tokenizer.encode(QUERY))
    longest, found = with_room(opened, [QUERY], tokenizer)
    assert found == (room or own) <= longest <= found + 3
    if room is None:
        with pytest.raises(DoesNotFit):
            with_room(opened, [], tokenizer)
    else:
        assert with_room(opened, [], tokenizer) == (longest, room)


# Margins ------------------------------------------------------------------------------------------------------------------


def test_again_takes_nothing_behind_it(session):
    code, _, err, results = session("/again now", "/save saved")
    assert code == 0 and len(results) == 1 and "/again takes nothing behind it; leave out now." in err


def test_margins_are_listed_dropped_and_kept(session):
    code, _, err, [first, dropped, kept] = session(
        "/margins",
        "/drop all",
        "/again",
        "/keep 2, 1",
        "/again",
        "/save saved",
        options=("--interactive", "--query", QUERY),
    )
    assert code == 0
    listed = re.findall(r"^ +(\d+) \[chunk (\d+) · context.txt:[\d-]+\] .* relevant", err, re.MULTILINE)
    n_chunks = first["chunks_read"]
    assert [number for number, chunk in listed if number == chunk] == [number for number, _ in listed]
    assert {int(number) for number, _ in listed} <= set(range(1, n_chunks + 1)) and len(listed) >= n_chunks + 2
    assert [margin["relevant"] for margin in dropped["margins"]] == [False] * n_chunks
    assert [margin["relevant"] for margin in kept["margins"]] == [True, True] + [False] * (n_chunks - 2)
    for result in (dropped, kept):
        assert (result["tokens"]["margins"], result["tokens"]["document"]) == (0, 0)
    assert dropped["tokens"]["final_prompt"] < kept["tokens"]["final_prompt"]


def test_a_margin_is_edited_and_one_is_added(session):
    words = "Mary is  on the moon."
    code, _, err, [_, last] = session("/drop all", f"/edit 2 {words}", "/add She likes it.", "/again", "/save saved")
    assert code == 0
    edited, added = last["margins"][1], last["margins"][-1]
    assert (edited["text"], edited["relevant"], edited["probability"]) == ("Mary is on the moon.", True, None)
    assert (added["text"], added["relevant"], added["sources"]) == ("She likes it.", True, [])
    assert edited["sources"] and "[your note] She likes it.  ✓ relevant" in err
    assert [margin["relevant"] for margin in last["margins"]].count(True) == 2
    number = len(last["margins"])
    code, _, _, [_, without] = session("/add She likes it.", f"/drop {number}", "/again", "/save saved")
    assert [margin["relevant"] for margin in without["margins"]][-1] is False


def test_underlined_sentences_go_by_their_chunks_and_are_dropped_and_edited(session):
    options = ("--interactive", "--query", QUERY, "--margins", "underlined", "--underlines", "5", "--chunk-tokens", "90")
    code, _, err, [_, last] = session(
        "/drop 1", "/keep 1b", "/edit 1 x", "/edit 1a No.", "/margins", "/again", "/save saved", options=options
    )
    on_first = [margin for margin in last["margins"] if margin["chunk"] == 0]
    assert code == 0 and len(on_first) > 1
    assert (on_first[0]["text"], on_first[0]["score"], on_first[1]["relevant"]) == ("No.", None, True)
    assert [margin["relevant"] for margin in on_first[2:]] == [False] * (len(on_first) - 2)
    assert "/edit takes one margin, and 1 means 1a, 1b" in err and "  1a [chunk 1 · context.txt:" in err


@pytest.mark.parametrize(
    "line, said",
    [
        ("/drop", "Which margins?"),
        ("/drop 99", "There is no margin 99"),
        ("/drop 2-x", "There is no margin 2-x"),
        ("/keep 9-3", "There is no margin 9-3"),
        ("/edit 1-2 x", "/edit takes one margin, and 1-2 means 1, 2"),
        ("/edit 1", "nobody to edit it"),
        ("/add", "The note is empty"),
        ("/add " + "moon " * 40, "tokens and may have 20; shorten it"),
        ("/edit 1 " + "moon " * 40, "tokens and may have 20; shorten it"),
        ("/save", "/save needs a file"),
        ("/save taken", "The file taken is there already"),
        ("/save absent/file", "absent/file cannot be written (No such file"),
        ("/bogus 7", "There is no /bogus"),
        ("/", "There is no /;"),
        ("/margins 7", "/margins takes nothing behind it; leave out 7."),
    ],
)
def test_what_cannot_be_done_gets_a_sentence_and_changes_nothing(session, tmp_path, line, said):
    (tmp_path / "taken").write_text("mine")
    code, _, err, [first, last] = session(line, "/again", "/save saved")
    assert code == 0 and said in err and "Traceback" not in err
    assert last["margins"] == first["margins"] and (tmp_path / "taken").read_text() == "mine"


def test_without_margins_there_are_none_to_change(session):
    code, _, err, [first, last] = session(
        "/margins", "/drop 1", "/add Mary is here.", "/again", "/save saved", "/save saved", options=(
            "--interactive", "--query", QUERY, "--pattern", "llm"
        )
    )  # fmt: skip
    assert code == 0 and err.count("There are no margins; /add writes one.") == 2
    assert last["tokens"]["final_prompt"] > first["tokens"]["final_prompt"]


def test_a_question_about_this_projects_own_files_shows_their_lines(session, tmp_path):
    """Checked against the files: a folder with some of them, as the whole takes a minute."""
    (tmp_path / "src").mkdir()
    for name in ("model/decode.py", "wim/verdict.py", "model/lazy.py", "wim/meter.py"):
        shutil.copy(ROOT / name, tmp_path / "src")
    query, underlined = "Which file holds the cache, and how does it roll back?", ("--margins", "underlined")
    code, _, err, [result] = session(
        "/save saved",
        options=("--interactive", "--query", query, *underlined, "--underlines", "40", "--chunk-tokens", "500"),
        context="src",
        model="long",
    )
    assert code == 0 and "document: src (4 files), " in err
    margins = result["margins"]
    assert not any(margin["text"].startswith("File: ") for margin in margins)  # those lines are in no file
    assert len(margins) > 3 and len({margin["sources"][0]["file"] for margin in margins}) > 1
    for margin in margins:
        [source] = margin["sources"]
        first, last = source["lines"]
        lines = Path(source["file"]).read_text(encoding="utf-8").split("\n")[first - 1 : last]
        assert margin["text"] in "\n".join(lines) and len(margin["text"].split("\n")) == len(lines)
        shown_as = f"{Path(source['file']).name}:{first}" + (f"-{last}" if last > first else "")
        assert f"[chunk {margin['chunk'] + 1} · {shown_as}] " in err


def test_help_names_every_command(session):
    _, _, err, _ = session("/help")
    assert re.findall(r"^(/\w+)", err, re.MULTILINE) == [
        "/margins", "/drop", "/keep", "/edit", "/add", "/again", "/save", "/quit", "/help"
    ]  # fmt: skip


def test_an_editor_changes_a_margin(monkeypatch, tmp_path):
    monkeypatch.setattr(keyboard, "is_typed", lambda: True)
    monkeypatch.delenv("VISUAL", raising=False)
    script = tmp_path / "editor.py"
    script.write_text("import sys; p = sys.argv[1]; t = open(p).read(); open(p, 'w').write(t.replace('home', 'away'))")
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    assert keyboard.edit("Mary went home.") == "Mary went away.\n"
    monkeypatch.setenv("EDITOR", "absent-editor")
    with pytest.raises(InputError, match="The editor 'absent-editor' did not work"):
        keyboard.edit("Mary")


def test_lines_that_are_no_text_and_no_lines_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Zo\xff?\r\nlast"), encoding="utf-8"))
    keyboard.take_lines(piped=False)
    assert [keyboard.read_line("> ") for _ in range(3)] == ["Zo\ufffd?", "last", None]
    monkeypatch.setattr(sys, "stdin", None)
    assert keyboard.read_line("> ") is None


def test_a_piped_document_leaves_nobody_to_ask_where_there_is_no_terminal(monkeypatch):
    def absent(*arguments):
        raise OSError(6, "No such device or address")

    monkeypatch.setattr(keyboard.os, "open", absent)
    with pytest.raises(InputError, match="no terminal to type at; name it with --context"):
        keyboard.take_lines(piped=True)


# Review -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [["/again"], [""], []], ids=["again", "enter", "end"])
def test_margins_are_reviewed_before_the_answer_is_written(session, end):
    lines = ["/drop all", "What?", "/add Mary is in the pond.", *end]
    code, out, err, _ = session(*lines, options=("--review", "--query", QUERY))
    assert code == 0 and len(out.splitlines()) == 1 and "A question has its turn after this answer" in err
    marks = re.findall(r"^ +\d+ \[.*([✓✗])", err, re.MULTILINE)
    assert marks[-2:] == ["✗", "✓"] and err.index("pond") < err.index("answer: ")


def test_what_was_reviewed_is_what_the_answer_is_made_of(session):
    lines = ["/drop all", "/add Mary is in the pond.", "", "/again", "/save saved"]
    code, _, _, [first, again] = session(*lines, options=("--review", "--interactive", "--query", QUERY))
    assert code == 0 and first["answer"] == again["answer"] and first["margins"] == again["margins"]
    assert [margin["text"] for margin in first["margins"] if margin["relevant"]] == ["Mary is in the pond."]


@pytest.mark.parametrize("more", [[], ["--interactive"]], ids=["alone", "interactive"])
def test_leaving_the_review_answers_nothing(session, more):
    code, out, err, _ = session("/quit", OTHER, options=("--review", "--query", QUERY, *more))
    assert (code, out) == (130, "") and "Traceback" not in err


# Ctrl-C -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", [ChunkRead, MarginDone, Noted, AnswerToken])
def test_ctrl_c_stops_what_runs_and_comes_back(session, monkeypatch, kind, times):
    interrupt_at(monkeypatch, kind, times)
    code, out, err, [early, whole] = session("/again", QUERY, "/save saved")
    assert code == 0 and "Stopped.\n" in err and "Interrupted" not in err
    assert early["chunks_read"] == (1 if kind in (ChunkRead, MarginDone) else whole["chunks_read"])
    short = f"answered after 1 of {whole['chunks_read']} chunks" in err
    assert short == (kind in (ChunkRead, MarginDone)) and len(early["margins"]) <= early["chunks_read"]
    *_, [fresh] = session("/save saved")
    assert (whole["answer"], whole["margins"]) == (fresh["answer"], fresh["margins"])


# As at a terminal, Ctrl-C reaches the editor and this process.
KILLED = f"{sys.executable} -S -c 'import os; os.kill(os.getppid(), 2); os.kill(os.getpid(), 2)'"


@pytest.mark.parametrize("editor", ["", KILLED], ids=["line", "editor"])
@pytest.mark.parametrize("options", [["--interactive"], ["--review"], ["--review", "--interactive"]], ids=" ".join)
def test_ctrl_c_while_a_margin_is_edited_leaves_it_as_it_was(session, monkeypatch, options, editor):
    monkeypatch.setattr(io, "StringIO", Typed)
    monkeypatch.setenv("VISUAL", editor)
    monkeypatch.delenv("EDITOR", raising=False)
    edited = ["/edit 1"] if editor else ["/edit 1", "^C"]
    code, out, err, _ = session(*edited, "/margins", "/edit 2 Moon.", "", options=(*options, "--query", QUERY))
    first = re.findall(r"^(?:> |review> |edit> )* +1 (\[chunk 1 .*)$", err, re.MULTILINE)
    assert code == 0 and out.strip() and "Interrupted" not in err and "Moon.  ✓" in err
    assert len(first) >= 1 and len(set(first)) == 1


# The terminal itself ------------------------------------------------------------------------------------------------------


class Typist:
    """Sits at a pseudo-terminal."""

    def __init__(self, command, environment):
        self.side, other = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True, preexec_fn=_control
        )
        os.close(other)
        self.text, self.seen = "", 0

    def wait_for(self, what, seconds=60, keys=""):
        """Until this comes up on the screen, after what was waited for before.

        keys: typed each second until then; readline does not notice a Ctrl-C that comes just before it waits for a key
        """
        for _ in range(seconds):
            self.type(keys)
            deadline = time.monotonic() + 1
            while what not in self.text[self.seen :]:
                ready, _, _ = select.select([self.side], [], [], max(0, deadline - time.monotonic()))
                if not ready:
                    break
                self.text += os.read(self.side, 4096).decode(errors="replace")
            else:
                self.seen = self.text.index(what, self.seen) + len(what)
                return
        raise AssertionError(f"no {what!r} in {self.text[self.seen :]!r}")

    def type(self, keys):
        os.write(self.side, keys.encode())


def _control():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.skipif(keyboard.readline is None, reason="a Python without readline")
def test_at_a_real_terminal(folder, tmp_path):
    """Ctrl-C at the prompt, history, editing on the line."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
        "EDITOR": "",
        "VISUAL": "",
    }
    given = ["--model", str(folder / "model"), "--context", str(folder / "context.txt"), *SMALL, "--interactive"]
    typist = Typist([sys.executable, str(ROOT / "scripts" / "generate.py"), *given, "--query", QUERY], environment)
    typist.wait_for("starting")
    typist.wait_for("comes back here.")
    typist.wait_for("> ")
    typist.type("half a lin")
    typist.wait_for("lin")
    typist.wait_for("> ", keys="\x03")
    typist.type("/edit 1\n")
    typist.wait_for("edit> ")
    typist.type("\x15Mary is here.\n")  # what stands there is erased first
    typist.wait_for("Mary is here.\r\n")
    typist.wait_for("✓ relevant")
    typist.wait_for("> ")
    typist.type("/drop 1\n")
    typist.wait_for("✗ not relevant")
    typist.wait_for("> ")
    typist.type("\x1b[A\x1b[A\x1b[A\x1b[B\x1b[B\x01\x0b/again\n")  # up and down, to the beginning, erased
    typist.wait_for("answer: ")
    typist.wait_for("> ")
    typist.type("\x04")
    assert typist.process.wait(60) == 0
    lines = shown(typist.text)
    assert any(re.fullmatch(r"\[chunk 1 · context.txt:\d+-\d+\] .* cache \d+ -> \d+", line) for line in lines)
    for i, line in enumerate(lines):
        assert not re.match("(document: .*|answer: .*) s$", line) or lines[i - 1]  # the answer stands above
    assert "Traceback" not in typist.text and "half a lin" in typist.text
