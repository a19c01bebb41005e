"""scripts/cli/sources.py: a margin's words stand in the file, on the lines and on the pages that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.documents import Document, Part, read_document
from cli.sources import Place, Sources
from hypothesis import given
from hypothesis import strategies as st

from weights import Checkpoint
from wim.chunks import split_document
from wim.events import Margin

ROOT = Path(__file__).parents[2]
TOKENIZER = Checkpoint.open("demo-llama").tokenizer


def sources_of(document, chunk_tokens=60):
    return Sources(document, split_document(document.text, TOKENIZER, chunk_tokens))


def read(place):
    """What stands on the lines of a place, and on its pages."""
    text = Path(place.file).read_bytes().decode("utf-8-sig")
    first, last = place.lines
    lines = "\n".join(text.split("\n")[first - 1 : last])
    if place.pages is None:
        return [lines]
    return [lines, "\f".join(text.split("\f")[place.pages[0] - 1 : place.pages[1]])]


def of_sentence(chunk, sentence):
    return Margin(chunk.index, sentence.start, sentence.end, sentence.text, score=1.0)


def test_the_projects_own_files_and_lines(monkeypatch):
    """Every sentence of a folder as it would be underlined, and every chunk: checked against the files."""
    monkeypatch.chdir(ROOT)
    sources, files = sources_of(read_document(["model"]), 300), set()
    for chunk in sources.chunks:
        places = sources.of_chunk(chunk.index)
        assert all(piece.strip() for place in places for piece in read(place))
        files |= {place.file for place in places}
        for sentence in chunk.sentences:
            if sentence.text and not sentence.text.startswith("File: "):
                [place] = sources.of(of_sentence(chunk, sentence))
                assert sentence.text in read(place)[0] and place.file in {other.file for other in places}
    texts = (path for kind in ("py", "md") for path in ROOT.glob(f"model/**/*.{kind}"))
    assert files == {str(path.relative_to(ROOT)) for path in texts}


lines = st.text(alphabet="ab. \n\r\f\u2028é", max_size=60)


@given(texts=st.lists(lines, min_size=1, max_size=4), ends=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_what_stands_between_two_characters_stands_on_the_lines_of_its_places(texts, ends):
    whole, parts = "", []
    for i, text in enumerate(texts):
        whole += f"\n\nFile: {i}\n\n"
        parts.append(Part(str(i), len(whole), len(whole) + len(text)))
        whole += text
    start, end = sorted(min(end, len(whole)) for end in ends)
    for place in Sources(Document(whole, "all", tuple(parts)), []).places(start, end):
        part = parts[int(place.file)]
        said = whole[max(start, part.start) : min(end, part.end)].strip()
        first, last = place.lines
        assert said in "\n".join(texts[int(place.file)].split("\n")[first - 1 : last])
        assert len(said.split("\n")) == last - first + 1
        assert (place.pages is None) == ("\f" not in texts[int(place.file)])
        if place.pages is not None:
            assert said in "\f".join(texts[int(place.file)].split("\f")[place.pages[0] - 1 : place.pages[1]])


TEXT = "Mary went\nhome. It was cold.\nJohn had a pie.\nIt was cold.\fThe end came.\nNone of it (2.5 pies) was left.\n"


@pytest.fixture
def book():
    [chunk] = (sources := sources_of(Document(TEXT, "shelf/book.txt"), 999)).chunks
    return sources, chunk


@pytest.mark.parametrize(
    "said, lines",
    [
        ("Mary went home.", [(1, 2)]),
        ("John had a pie.", [(3, 3)]),
        ("- “John had a pie.”", [(3, 3)]),
        ("Mary went home. The end came.", [(1, 2), (4, 4)]),
        ("It was cold.\nJohn had", [(2, 3)]),
        ("It was cold.", [(1, 5)]),  # twice: which of them is not known
        ("John had a pi", [(1, 5)]),
        ("2.5 pies", [(5, 5)]),
        ("John had a pie. He ate it.", [(1, 5)]),
        ("None.", [(1, 5)]),
        ("", [(1, 5)]),
    ],
)
def test_a_quotation_has_lines_of_its_own(book, said, lines):
    sources, chunk = book
    assert [place.lines for place in sources.of(Margin.on(chunk, said))] == lines


def test_a_note_about_nothing_in_particular_has_no_place(book):
    sources, chunk = book
    assert sources.of(Margin(chunk.index, chunk.end, chunk.end, "Mary went home.")) == []
    assert sources.name(Margin(chunk.index, chunk.end, chunk.end, "Mary went home.")) == ""


def test_an_underlined_sentence_keeps_its_place_when_its_words_are_changed(book):
    sources, chunk = book
    second = [sentence for sentence in chunk.sentences if sentence.text == "It was cold."][1]
    for margin in (of_sentence(chunk, second), Margin(chunk.index, second.start, second.end, "It froze.")):
        assert [place.lines for place in sources.of(margin)] == [(4, 4)]


@pytest.mark.parametrize(
    "places, name",
    [
        ([Place("src/a.py", (4, 4))], "a.py:4"),
        ([Place("src/a.py", (4, 9)), Place("src/a.py", (12, 12)), Place("src/b/c.py", (1, 2))], "a.py:4-9,12, b/c.py:1-2"),
        ([Place("src/a.py", (4, 9), (3, 3))], "a.py page 3"),
        ([Place("src/a.py", (4, 9), (3, 4)), Place("src/b.py", (1, 1))], "a.py pages 3-4, b.py:1"),
        ([Place(f"src/{i}.py", (1, 2)) for i in range(9)], "0.py:1-2, 1.py:1-2, 7 files more"),
        ([], ""),
    ],
)
def test_places_in_words(places, name):
    files = tuple(Part(file, 0, 0) for file in ("src/a.py", "src/b/c.py"))
    assert Sources(Document("", "src", files), []).named(places) == name


def test_paths_that_have_no_folder_in_common_stay_whole():
    sources = Sources(Document("", "", (Part("/a/b.txt", 0, 0), Part("c/d.txt", 0, 0))), [])
    assert sources.named([Place("/a/b.txt", (1, 1)), Place("c/d.txt", (2, 2))]) == "/a/b.txt:1, c/d.txt:2"
    assert Sources(Document("x", "a/b.txt"), []).named([Place("a/b.txt", (1, 1))]) == "b.txt:1"
