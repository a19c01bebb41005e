"""From a folder of books and a checkpoint folder to a source of trees."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tasks.background import Background

from model.errors import InputError
from training.document_maker import DocumentMaker, Lengths
from training.folder import READING
from training.rows import TreeSource
from training.trees import TreeGrower
from weights import ChatFormat, Tokenizer
from wim.prompts import Prompts
from wim.settings import Wishes

GUESSED_CHARS_PER_TOKEN = 4.0  # before there is a tokenizer


def training_text(folder: Path | None, held_out: list[str]) -> Background | None:
    """The books of a folder except those with one of `held_out` in their file's name; None without a folder.

    Raises InputError for a folder without books, and for a name that holds nothing out: a slip there would show only as
    a result too good to be true.
    """
    if folder is None and held_out:
        raise InputError(f"There are no books to hold {held_out[0]!r} out of; give --text FOLDER.")
    if folder is None:
        return None
    names = sorted(path.name for path in folder.glob("*.txt"))
    for part in held_out:
        if not any(part in name for name in names):
            raise InputError(f"No book in {folder} has {part!r} in its name, so --hold-out {part} holds nothing out.")
    kept = [name for name in names if not any(part in name for part in held_out)]
    if names and not kept:
        raise InputError(f"All {len(names)} books in {folder} are held out; leave some to train on.")
    return Background.from_folder(folder, kept or None)


def tokenizer_texts(books: Background | None, seed: int, n_documents: int = 2500, n_tokens: int = 1024) -> Iterator[str]:
    """What a tokenizer is trained on: documents as the model will read them, and all of the prompts' wording."""
    rng = random.Random(f"tokenizer-{seed}")
    maker = DocumentMaker(books, Background.generated(), GUESSED_CHARS_PER_TOKEN)
    wording = "\n".join(vars(Prompts()).values())
    for _ in range(n_documents):
        document = maker.make(rng, n_tokens)
        yield document.text
        yield from (f"{question.query}\n{question.answer}" for question in document.questions)
        yield wording + "\nYES\nNO\nNone."


def make_source(
    folder: Path, books: Background | None, lengths: Lengths, *, question_lengths_max: int = 1 << 30
) -> TreeSource:
    """A source of trees for the tokenizer, chat format, prompts and size of chunks of a checkpoint folder.

    Raises InputError for a folder without them, and for one whose replies can end in several ways.
    """
    tokenizer = Tokenizer.from_folder(folder)
    chat = ChatFormat.from_folder(folder, tokenizer)
    header, _, closing = chat.prompt_pieces(None)
    if len(chat.stop_ids) != 1:
        ids = ", ".join(map(str, sorted(chat.stop_ids))) or "none"
        raise InputError(f"{folder} should name one token that ends a reply, but names {ids}; give a demo checkpoint.")
    (end_of_turn,) = chat.stop_ids
    prose = Background.generated()
    sample = "".join((books or prose).passage(random.Random(0), 200_000))
    maker = DocumentMaker(
        books, prose, len(sample) / len(tokenizer.encode(sample)), question_lengths_max=question_lengths_max
    )
    wishes = Wishes.of(folder)
    chunk_tokens = wishes.values.get("chunk_tokens", READING["chunk_tokens"])
    grower = TreeGrower(tokenizer, header, closing, end_of_turn, wishes.prompts, chunk_tokens)
    return TreeSource(maker, grower, lengths)
