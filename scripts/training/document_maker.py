"""What the training documents are about: simulated stories and needles hidden in background, in a mixture of lengths.

Most documents are whole: all facts are in them, and their questions have answers. Some of the short ones are
*excerpts*, a chunk as the pattern `rag` sees it: a few consecutive facts of a longer story, or none. An excerpt's
questions have margins and a relevance, but no answer that one could learn from it.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass

from tasks.background import Background
from tasks.document import Document, FactQuestion
from tasks.hiding import hide
from tasks.needles import MAX_NEEDLES, NEEDLE_TASKS, Needles, make_needles
from tasks.story import STORY_TASKS, Story, simulate

from model.errors import InputError

MIN_FACTS, MAX_FACTS, TOKENS_PER_FACT = 6, 60, 64  # facts: from 6 up to 6 + length / 64, 60 at most
EXCERPT_TOKENS = 256  # documents up to this length may be excerpts
EXCERPT_FACTS = 8  # the most that an excerpt shows


@dataclass(frozen=True)
class Lengths:
    """A mixture of document lengths.

    bins: (least, most, share): lengths are log-uniform in a bin, and `share` is the bin's share of all tokens trained
        on, those of questions and replies included
    """

    bins: tuple[tuple[int, int, float], ...]

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Read "128-256:0.2,256-1024:0.8". Raises InputError for anything else."""
        bins = []
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d{1,9})-(\d{1,9}):(\d{0,9}\.?\d{1,20})\s*", part)
            if not match or not 1 <= int(match[1]) <= int(match[2]) or float(match[3]) <= 0:
                raise InputError(
                    f"The lengths {text!r} have a part {part!r} that is not LEAST-MOST:SHARE, such as 256-1024:0.5."
                )
            bins.append((int(match[1]), int(match[2]), float(match[3])))
        return cls(tuple(bins))

    def sample(self, rng: random.Random, index: int) -> int:
        """A length of bin `index`."""
        least, most, _ = self.bins[index]
        return round(math.exp(rng.uniform(math.log(least), math.log(most))))


@dataclass(frozen=True)
class DocumentMaker:
    """Makes documents of about a wanted length.

    books: background text; None to use nothing but built-in prose
    prose: built-in prose, for the share `prose_share` of the documents
    chars_per_token: of the tokenizer, to turn lengths into characters
    needles_share: how many documents hold needles instead of a story
    excerpt_share: how many of the documents of up to EXCERPT_TOKENS tokens are excerpts
    question_lengths_max: documents of more tokens get no questions: they are text to read
    tasks: the story tasks that are asked about
    """

    books: Background | None
    prose: Background
    chars_per_token: float
    prose_share: float = 0.15
    needles_share: float = 0.15
    excerpt_share: float = 0.5
    question_lengths_max: int = 1 << 30
    tasks: tuple[str, ...] = tuple(STORY_TASKS)

    def make(self, rng: random.Random, n_tokens: int) -> Document:
        """A document of about `n_tokens` tokens with up to four questions."""
        background = self.prose if self.books is None or rng.random() < self.prose_share else self.books
        most = min(MAX_FACTS, MIN_FACTS + n_tokens // TOKENS_PER_FACT)
        n_facts = rng.randint(MIN_FACTS, most)
        if rng.random() < self.needles_share:
            world, tasks = make_needles(rng, min(n_facts, MAX_NEEDLES)), tuple(NEEDLE_TASKS)
        else:
            world, tasks = simulate(rng, n_facts), self.tasks
        if n_tokens <= EXCERPT_TOKENS and rng.random() < self.excerpt_share:
            return self._excerpt(rng, n_tokens, background, world, tasks)

        text, spans = self._hidden(rng, n_tokens, background, world.texts)
        if n_tokens > self.question_lengths_max:
            return Document(text, ())
        by_task: dict[str, list[FactQuestion]] = {}
        for question in world.questions(*tasks):
            by_task.setdefault(question.task, []).append(question)
        chosen = [rng.choice(questions) for questions in by_task.values()]
        return Document(text, tuple(question.placed(spans) for question in chosen))

    def _excerpt(
        self, rng: random.Random, n_tokens: int, background: Background, world: Story | Needles, tasks: tuple[str, ...]
    ) -> Document:
        """Some consecutive facts; as many questions that they bear on as questions that they do not, up to two each."""
        facts = world.texts
        n_shown = min(rng.randint(0, EXCERPT_FACTS), len(facts))
        first = rng.randint(0, len(facts) - n_shown)
        shown = range(first, first + n_shown)
        text, spans = self._hidden(rng, n_tokens, background, facts[first : first + n_shown])
        helped, others = [], []
        for question in world.questions(*tasks):
            inside = tuple(i - first for i in question.evidence if i in shown)
            # Who carries an object is said once, when it is taken. Behind that, nobody can tell from a chunk alone.
            if inside and question.task == "two_facts" and question.evidence[0] < first:
                continue
            excerpt = FactQuestion(question.task, question.query, question.target, inside).placed(spans)
            (helped if inside else others).append(excerpt)
        helped = rng.sample(helped, min(2, len(helped)))
        others = rng.sample(others, min(len(others), len(helped) or 1))
        return Document(text, (*helped, *others), meta={"excerpt": True})

    def _hidden(self, rng: random.Random, n_tokens: int, background: Background, facts: list[str]):
        n_chars = n_tokens * self.chars_per_token - sum(len(fact) + 1 for fact in facts)
        sentences = background.passage(rng, max(1, int(n_chars)))
        return hide(sentences[:-1] or sentences, facts, rng)  # the last sentence is the one that goes beyond
