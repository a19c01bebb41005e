"""From a document with questions to a *tree*: the document's tokens, and branches that hang from places in it.

A branch is what the WiM loop appends to the cache after some of the document, and rolls back again: a prompt and the
reply to learn. So a document of 4,096 tokens is read once and teaches some twenty replies. The tokens are put together
exactly as the loop does it: the document is tokenized once and whole, and each prompt and reply by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from tasks.document import NO_EVIDENCE, Document, Question
from tasks.story import TAKE, VERBS

from wim.chunks import Chunk, split_document
from wim.prompts import Prompts, fill, list_margins

# What a target is a token of. NONE: nothing that is learnt (prompts, padding); TEXT: the document; the others: replies.
KINDS = ("none", "text", "margin", "no_margin", "llm", "wim", "relevance", "verdict")
NONE, TEXT, MARGIN, NO_MARGIN, LLM, WIM, RELEVANCE, VERDICT = range(len(KINDS))

MIN_MARGINS, MAX_MARGINS, MARGINS_PER_CHUNK = 4, 16, 0.85  # of a document


class Tokenizer(Protocol):
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...
    def encode(self, text: str, *, after: Sequence[int] | None = None) -> list[int]: ...


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens: a document, or a branch of it.

    kind: of the tokens that are learnt
    ids: prompt and what is learnt, one after the other
    n_prompt: how many of `ids` are prompt, from which nothing is learnt
    cut: how many tokens of the tree's document come before; 0 for the document itself, and for a turn of its own
    """

    kind: int
    ids: list[int]
    n_prompt: int
    cut: int = 0

    @property
    def size(self) -> int:
        """Tokens in a row. The last token of a reply is only a target: nobody reads on from it."""
        return len(self.ids) if self.kind == TEXT else len(self.ids) - 1


@dataclass(frozen=True)
class Tree:
    """A document and its branches, in groups that are kept or left out together."""

    document: Segment
    groups: list[list[Segment]]

    @property
    def size(self) -> int:
        """Tokens in a row, all groups included."""
        return self.document.size + sum(branch.size for group in self.groups for branch in group)


class TreeGrower:
    """Turns documents into trees.

    chat_header, closing: token ids before the user's text and after it (ChatFormat.prompt_pieces)
    end_of_turn: the token that ends a reply
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_header: Sequence[int],
        closing: Sequence[int],
        end_of_turn: int,
        prompts: Prompts | None = None,
        chunk_tokens: int = 256,
    ):
        self.tokenizer = tokenizer
        self.chat_header, self.closing, self.end_of_turn = list(chat_header), list(closing), end_of_turn
        self.prompts = prompts or Prompts()
        self.chunk_tokens = chunk_tokens
        self.encode = lru_cache(maxsize=20_000)(tokenizer.encode)  # questions and replies repeat
        self.header = self.chat_header + tokenizer.encode(self.prompts.opening, after=self.chat_header)

    def grow(self, document: Document, rng: random.Random) -> Tree:
        """The document's tree; which of its margins are asked for is drawn from `rng`."""
        if not document.questions:
            ids, _ = self.tokenizer.encode_with_offsets(document.text)
            return Tree(Segment(TEXT, self.header + ids, len(self.header)), [])
        chunks = split_document(document.text, self.tokenizer, self.chunk_tokens)
        ids = self.header + [token for chunk in chunks for token in chunk.ids]
        pairs = [
            (question, chunk, document.margin(question, chunk.text_start, chunk.text_end))
            for question in document.questions
            for chunk in chunks
        ]
        excerpt = document.meta.get("excerpt", False)
        groups = [[self._margin(*pair)] for pair in _sample_pairs(pairs, len(chunks), rng)]
        if excerpt and len(chunks) == 1:
            groups += [[self._relevance(*pair)] for pair in pairs]
        elif not excerpt:
            groups += [self._answers(question, pairs, len(ids)) for question in document.questions]
        groups += self._verdicts(pairs, rng)
        rng.shuffle(groups)
        return Tree(Segment(TEXT, ids, len(self.header)), groups)

    def _margin(self, question: Question, chunk: Chunk, margin: str) -> Segment:
        kind = NO_MARGIN if margin == NO_EVIDENCE else MARGIN
        prompt = fill(self.prompts.margin, query=question.query, beginning=chunk.beginning)
        return self._branch(kind, prompt, margin, len(self.header) + chunk.end)

    def _relevance(self, question: Question, chunk: Chunk, margin: str) -> Segment:
        prompt = fill(self.prompts.relevance, query=question.query)
        return self._branch(RELEVANCE, prompt, _yes(margin != NO_EVIDENCE), len(self.header) + chunk.end)

    def _answers(self, question: Question, pairs: list[tuple[Question, Chunk, str]], cut: int) -> list[Segment]:
        """The question asked both ways, without notes and with them, so that neither way is trained more."""
        margins = [margin for asked, _, margin in pairs if asked is question and margin != NO_EVIDENCE]
        notes = list_margins(self.prompts, margins)
        plain = fill(self.prompts.answer, query=question.query)
        with_margins = fill(self.prompts.answer_with_margins, query=question.query, margins=notes)
        return [
            self._branch(LLM, plain, question.answer, cut),
            self._branch(WIM, with_margins, question.answer, cut),
        ]

    def _verdicts(self, pairs: list[tuple[Question, Chunk, str]], rng: random.Random) -> list[list[Segment]]:
        """One margin that helps with a question and one that does not; turns of their own, that see no document."""
        helpful = [(question, margin) for question, _, margin in pairs if margin != NO_EVIDENCE]
        if not helpful:
            return []
        question, margin = rng.choice(helpful)
        unhelpful = [other for asked, other in helpful if _unrelated(question, asked, other)]
        if not unhelpful or rng.random() < 0.3:
            unhelpful = [NO_EVIDENCE]
        verdicts = []
        for note, helps in ((margin, True), (rng.choice(unhelpful), False)):
            text = fill(self.prompts.verdict, margin=note, query=question.query)
            prompt = self.chat_header + self.encode(text) + self.closing
            verdicts.append(Segment(VERDICT, prompt + self._reply(_yes(helps)), len(prompt)))
        return [verdicts]

    def _branch(self, kind: int, prompt: str, reply: str, cut: int) -> Segment:
        ids = self.encode(prompt) + self.closing
        return Segment(kind, ids + self._reply(reply), len(ids), cut)

    def _reply(self, text: str) -> list[int]:
        return self.encode(text) + [self.end_of_turn]


def _sample_pairs(
    pairs: list[tuple[Question, Chunk, str]], n_chunks: int, rng: random.Random
) -> list[tuple[Question, Chunk, str]]:
    """As many (question, chunk) pairs as the document's length deserves, half of them with evidence where there is."""
    wanted = min(MAX_MARGINS, max(MIN_MARGINS, round(MARGINS_PER_CHUNK * n_chunks)), len(pairs))
    pairs = rng.sample(pairs, len(pairs))
    with_evidence = [pair for pair in pairs if pair[2] != NO_EVIDENCE]
    without = [pair for pair in pairs if pair[2] == NO_EVIDENCE]
    n_with = min(len(with_evidence), max(wanted // 2, wanted - len(without)))
    return with_evidence[:n_with] + without[: wanted - n_with]


def _unrelated(question: Question, other: Question, margin: str) -> bool:
    """Is a margin of the other question surely no help with the first?"""
    if set(other.evidence) & set(question.evidence):
        return False
    # Where a person went helps with every object that the person may be carrying. That a margin is about another object
    # shows only where it says that this was taken.
    return question.task != "two_facts" or any(verb in margin for verb in VERBS[TAKE])


def _yes(helps: bool) -> str:
    return "YES" if helps else "NO"
