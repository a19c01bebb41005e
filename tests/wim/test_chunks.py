"""Cutting a document loses nothing, whatever the text looks like, and cuts where a reader would."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from weights_helpers import TEXTS, write_tokenizer

from weights import DEMOS, Tokenizer
from wim.chunks import BEGINNING_CHARS, split_document


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Byte-level and SentencePiece vocabularies, and the demo's."""
    folders = {kind: write_tokenizer(tmp_path_factory.mktemp("tokenizers") / kind, kind) for kind in TEXTS} | DEMOS
    return {name: Tokenizer.from_folder(folder) for name, folder in folders.items()}


class Letters:
    """A tokenizer whose tokens are the letters; places in its ids are places in the text."""

    def encode_with_offsets(self, text):
        return [ord(letter) for letter in text], [(i, i + 1) for i in range(len(text))]


def texts_of(text, chunks):
    return [text[chunk.text_start : chunk.text_end] for chunk in chunks]


def check(text, tokenizer, chunk_tokens):
    """What holds for every document. Returns its chunks."""
    chunks = split_document(text, tokenizer, chunk_tokens)
    whole = tokenizer.encode_with_offsets(text)[0]
    assert sum((chunk.ids for chunk in chunks), []) == whole
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(1 <= len(chunk.ids) <= chunk_tokens for chunk in chunks)
    assert all(chunk.ids == whole[chunk.start : chunk.end] for chunk in chunks)
    if chunks:
        assert (chunks[0].text_start, chunks[-1].text_end) == (0, len(text))
    assert all(a.text_end == b.text_start and a.end == b.start for a, b in pairwise(chunks))
    assert "".join(texts_of(text, chunks)) == text
    for chunk, part in zip(chunks, texts_of(text, chunks), strict=True):
        assert len(chunk.beginning) <= BEGINNING_CHARS and len(chunk.beginning.splitlines()) <= 1
        assert " ".join(part.split()).startswith(chunk.beginning)
        assert chunk.beginning or not part.strip()
    return chunks


nasty = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="ab .!?\n\r\t", max_size=400),
    st.text(alphabet="你好。世界！？\n、 a", max_size=300),
    st.text(alphabet="🙂🙃👨‍👩‍👧\u0301\ufeff\x00\u200b é", max_size=200),
    st.lists(st.sampled_from(["def f(x):\r\n", "    return {x: 1}\n", "\n", "# end.", "<|eot_id|>", "</s>", "\t"])).map(
        "".join
    ),
)


@given(data=st.data(), text=nasty, chunk_tokens=st.integers(1, 60))
def test_nothing_is_lost(tokenizers, data, text, chunk_tokens):
    name = data.draw(st.sampled_from(sorted(tokenizers)))
    check(text, tokenizers[name], chunk_tokens)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "word " * 20_000,
        "The end. " * 5000,
        "\n" * 5000 + ".",
        "天地玄黄宇宙洪荒" * 2000,
        "Ja. Nein!\r\n\r\n" * 3000,
        "🙂" * 5000,
        "\x00" * 3000,
    ],
    ids=["one-line", "no-punctuation", "sentences", "blank-lines", "chinese", "crlf", "emoji", "null-bytes"],
)
def test_nothing_is_lost_of_a_long_document(tokenizers, kind, text):
    assert len(check(text, tokenizers[kind], 1000)) > 1


@given(text=nasty, chunk_tokens=st.integers(1, 60))
def test_letters_as_tokens(text, chunk_tokens):
    """Without the accidents of a vocabulary: a chunk's text is just its tokens."""
    chunks = check(text, Letters(), chunk_tokens)
    assert texts_of(text, chunks) == [text[chunk.start : chunk.end] for chunk in chunks]


def test_a_document_that_fits_is_one_chunk():
    [chunk] = check("One. Two.\n\nThree.", Letters(), 17)
    assert (chunk.start, chunk.end, chunk.text_start, chunk.text_end) == (0, 17, 0, 17)


@pytest.mark.parametrize(
    "text, beginning",
    [
        ("  Mary\r\n\r\nwent\t home. ", "Mary went home."),
        ("\n \n", ""),
        ("Mary went to the garden and then on to the kitchen, where", "Mary went to the garden and then on to the"),
        ("a" * 47 + " b and so on", "a" * 47),
        ("a" * 48 + " b and so on", "a" * 48),
        ("第一章 " + "天地玄黄" * 20, ("第一章 " + "天地玄黄" * 20)[:48]),  # not the heading alone
        ("x" * 100, "x" * 48),
    ],
)
def test_a_beginning_is_the_first_words_on_a_line(text, beginning):
    [chunk] = check(text, Letters(), 200)
    assert chunk.beginning == beginning


def cut(text, chunk_tokens):
    return texts_of(text, check(text, Letters(), chunk_tokens))


@pytest.mark.parametrize(
    "text, first",
    [
        ("Mary went home. John did not. He stayed", "Mary went home. John did not."),
        ("He said: “Go?” No (not one!) one did so", "He said: “Go?” No (not one!)"),
        ("Version 3.11 was out and 2.7 was not here", "Version 3.11 was out and 2.7 w"),  # no sentence ends in a number
        ("他去了花园。约翰没有！他们回到家里来了" * 2, "他去了花园。约翰没有！他们回到家里来了他去了花园。约翰没有！"),
        ("他说：“走吧。”然后就走了" * 3, "他说：“走吧。”然后就走了他说：“走吧。”"),
        ("a = 1\nb = 2\nc = [10, 20, 30, 40, 50]\n", "a = 1\nb = 2\n"),
        ("nothing to hold on to anywhere in this text", "nothing to hold on to anywhere"),
    ],
)
def test_a_chunk_ends_with_a_sentence_else_a_line_else_anywhere(text, first):
    assert cut(text, 30)[0].strip() == first.strip()


def test_a_sentence_end_beats_a_later_line():
    assert cut("It ended. And\nthen the next\nbegan here", 30)[0] == "It ended."


@pytest.mark.parametrize(
    "gap, cut_at_paragraph", [(0, True), (8, True), (11, True), (12, False), (40, False)], ids=lambda value: str(value)
)
def test_a_paragraph_end_in_the_last_eighth_is_preferred(gap, cut_at_paragraph):
    """100 letters make a chunk, so its last eighth begins at 88; a sentence ends at its very end."""
    paragraph = "p" * (97 - gap) + ".\n\n"
    text = paragraph + "s" * (gap - 1) + "." * (gap > 0) + " " + "t" * 200
    first = cut(text, 100)[0]
    assert first == (paragraph if cut_at_paragraph else text[:100])


def test_ordinary_prose_is_cut_at_sentence_ends(tokenizers):
    sentences = [f"Mary went to room {i} and picked up the {thing}." for i, thing in enumerate(["ball", "milk"] * 100)]
    text = "".join(sentence + ("\n\n" if i % 7 == 6 else " ") for i, sentence in enumerate(sentences))
    for tokenizer in tokenizers.values():
        chunks = check(text, tokenizer, 200)
        assert len(chunks) > 10
        assert all(part.rstrip().endswith(".") for part in texts_of(text, chunks))
        # Two sentences more would not have fitted: the budget is used.
        assert all(len(chunk.ids) > 200 - 60 for chunk in chunks[:-1])


def test_a_token_that_spans_a_sentence_end_stays_whole():
    class Pairs:
        """Tokens of two letters: no cut can fall between them."""

        def encode_with_offsets(self, text):
            spans = [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]
            return [hash(text[a:b]) for a, b in spans], spans

    text = "abcd. efgh. ijklmnopqrstuv. wxyz."
    chunks = check(text, Pairs(), 7)
    assert texts_of(text, chunks)[0] == "abcd. efgh. "
