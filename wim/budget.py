"""How much room a run needs, known from the checkpoint's small files before a single weight is read.

Everything is tokenized here, once. The document, the question and the answer must have room. Margins, and notes (the
margins in the final prompt), take what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from model.errors import DoesNotFit, InputError
from wim.chunks import Chunk, split_document
from wim.contracts import Source
from wim.needs import NEEDS, Needs, joined
from wim.prompt_ids import PromptIds
from wim.prompts import Prompts
from wim.settings import Settings, Wishes


@dataclass(frozen=True)
class Plan:
    """A document cut into chunks, the settings, and the room that any of the questions can need.

    needs: that room, in positions behind the document
    classifier_prompts: None where no verdicts are wanted
    context_length: positions that the model has
    margin_window: of how many chunks the margins are written together
    look_chunks: behind how many chunks, at most, a question is read together, to underline
    margin_tokens: for each chunk, how long its margin may become: what the settings say, or what the context has left
    queries: the questions that it was made for
    """

    settings: Settings
    prompts: PromptIds
    classifier_prompts: PromptIds | None
    chunks: list[Chunk]
    needs: Needs
    context_length: int
    margin_window: int
    margin_tokens: list[int]
    look_chunks: int = 8
    queries: tuple[str, ...] = ()

    @property
    def document_tokens(self) -> int:
        return self.chunks[-1].end

    @property
    def min_length(self) -> int:
        """Positions of the model's context without which the document cannot be read."""
        return self._read + max(self.needs.answer, self.needs.relevance, self.needs.look)

    @property
    def max_length(self) -> int:
        """How many positions of the model's context the run uses at most."""
        behind = max(self._last_prompt, self.needs.relevance, self.needs.look, self._margin_row)
        return min(self.context_length, self._read + behind)

    @property
    def capacity(self) -> int:
        """Positions of the cache: header, document, and what may follow it."""
        together = self.margin_window * self._margin_row
        return self._read + max(self._last_prompt, self.needs.all_relevance, together, self._looks)

    @property
    def verdict_length(self) -> int:
        """The most positions of one verdict, header and prompt."""
        return self.needs.verdict_header + self.needs.verdict

    @property
    def verdict_capacity(self) -> int:
        """Positions of the second cache, in which margins are judged; 0 where it is not needed."""
        return self.needs.verdict_header + self.margin_window * self.needs.verdict if self.needs.verdict else 0

    @property
    def prompts_together(self) -> int:
        """The most tokens of prompts that one forward pass reads, those of a window's margins."""
        margins = self.margin_window * max(self.needs.margin_prompts, default=0)
        return max(margins, self.needs.all_relevance, self._looks)

    def margin_windows(self) -> list[list[Chunk]]:
        """The chunks whose margins are written together; these may become equally long."""
        alike = [list(group) for _, group in groupby(self.chunks, key=lambda chunk: self.margin_tokens[chunk.index])]
        size = self.margin_window
        return [group[first : first + size] for group in alike for first in range(0, len(group), size)]

    def smaller(self) -> Plan | None:
        """The same run in less cache: fewer margins together, or less room for notes. None where that is all gone."""
        if self.margin_window > 1 and (self.margin_window * self._margin_row >= self._last_prompt or not self.needs.notes):
            return replace(self, margin_window=self.margin_window // 2)
        if self.needs.notes:
            return replace(self, needs=replace(self.needs, notes=self.needs.notes // 2))
        return None

    def shortages(self) -> list[str]:
        """What is less than the settings ask for, a sentence each."""
        said, wanted = [], min(self.settings.margin_window or len(self.chunks), len(self.chunks))
        if self.margin_window < wanted:
            said.append(f"Memory is short: margins are written {self.margin_window} at a time instead of {wanted}.")
        most = enumerate(self.margin_tokens, 1)
        if short := [f"chunk {i} {n_tokens}" for i, n_tokens in most if n_tokens < self.settings.margin_tokens]:
            said.append(f"The context is short: of {self.settings.margin_tokens} margin tokens get {', '.join(short)}.")
        return said

    @property
    def _read(self) -> int:
        return len(self.prompts.header) + self.document_tokens

    @property
    def _last_prompt(self) -> int:
        return self.needs.answer + self.needs.notes

    @property
    def _looks(self) -> int:
        """The prompts that look at some chunks together: for each chunk the question's, and an empty one's."""
        return 2 * min(self.look_chunks, len(self.chunks)) * self.needs.look

    @property
    def _margin_row(self) -> int:
        rows = zip(self.needs.margin_prompts, self.margin_tokens, strict=True)
        return max((prompt + n_tokens for prompt, n_tokens in rows if n_tokens), default=0)


def check_length(document: str, checkpoint: Source) -> None:
    """Refuse a document that is far too long without tokenizing all of it: 50 MB take a minute.

    A beginning of it is tokenized, twice as long each time, until it alone has more tokens than the context has positions
    (by an eighth and more: where a text is cut, its tokens may differ), or is half of the document.
    Raises DoesNotFit.
    """
    limit = checkpoint.config.context_length
    n_chars = 4 * limit
    while 2 * n_chars < len(document):
        n_tokens = len(checkpoint.tokenizer.encode(document[:n_chars]))
        if n_tokens > limit + limit // 8 + 64:
            raise DoesNotFit(
                f"The document has {len(document)} characters, and {n_chars} of them take {n_tokens} tokens already; "
                f"{checkpoint.name} has {limit} positions: shorten it, or take a model with a longer context."
            )
        n_chars *= 2


def make_plan(
    checkpoint: Source,
    document: str,
    queries: list[str],
    settings: Settings,
    prompts: Prompts | None = None,
    classifier: Source | None = None,
    *,
    patterns: Sequence[str] | None = None,
    chunks: list[Chunk] | None = None,
) -> Plan:
    """Tokenize, cut, and add up.

    prompts: None for those that each checkpoint's folder wishes for (wim/settings.py)
    checkpoint: the model's tokenizer, chat format and context length (wim/contracts.py); no weight is looked at
    classifier: those of the model that judges margins, or None where no verdicts are wanted
    patterns: all that will be asked for, if it is not just that of the settings
    chunks: the document, if it has been cut already
    Raises InputError when there is nothing to read, and DoesNotFit when a context cannot hold it.
    """
    if settings.pack and (classifier is None or classifier.folder != checkpoint.folder):
        raise InputError("--pack has the model judge its own margins; leave out --classifier, or --pack.")
    if not document.strip():
        raise InputError("The document is empty; give a text to read.")
    patterns = patterns or [settings.pattern]
    ids = PromptIds(checkpoint, prompts or Wishes.of(checkpoint.folder).prompts, settings.margin_tokens, settings.system)
    if settings.margins == "underlined":
        classifier = None  # nothing is written that it could judge
    judge = classifier and PromptIds(classifier, prompts or Wishes.of(classifier.folder).prompts, settings.margin_tokens)
    for name, who in (("rag", ids), ("wim", judge)):
        if name in patterns and who is not None:
            who.check_verdicts()
    if chunks is None:
        check_length(document, checkpoint)
        chunks = split_document(document, checkpoint.tokenizer, settings.chunk_tokens)
    needs = joined([NEEDS[pattern](ids, judge, queries, settings, chunks) for pattern in patterns])
    limit, window = checkpoint.config.context_length, min(settings.margin_window or len(chunks), len(chunks))
    left = [limit - len(ids.header) - chunk.end - n for chunk, n in zip(chunks, needs.margin_prompts, strict=False)]
    margin_tokens = [max(0, min(settings.margin_tokens, n_tokens)) for n_tokens in left]
    plan = Plan(settings, ids, judge, chunks, needs, limit, window, margin_tokens, queries=tuple(queries))
    check_fits(plan, checkpoint, classifier)
    return replace(plan, needs=replace(needs, notes=min(needs.notes, limit - plan.min_length)))


def check_fits(plan: Plan, checkpoint: Source, classifier: Source | None) -> None:
    """Raises DoesNotFit where a context is too short for the document, the question and the answer, or for a verdict."""
    n_tokens, needed, limit = plan.document_tokens, plan.min_length, plan.context_length
    if (over := needed - limit) > 0:
        shorter = f"shorten the document by {over} tokens, " if over < n_tokens else ""
        raise DoesNotFit(
            f"The document has {n_tokens} tokens and needs {needed} positions with the question and an answer of up to "
            f"{plan.settings.answer_tokens}; {checkpoint.name} has {limit}: {shorter}lower --answer-tokens, shorten the "
            "question, or take a model with a longer context."
        )
    if plan.needs.verdict and plan.verdict_length > classifier.config.context_length:
        raise DoesNotFit(
            f"A verdict needs {plan.verdict_length} positions and the classifier {classifier.name} has "
            f"{classifier.config.context_length}; lower --margin-tokens or take another classifier."
        )
