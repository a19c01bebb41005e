"""How much room a run needs, known from the checkpoint's small files before a single weight is read.

Everything is tokenized here once: the chat format around the user's text, the document, the prompts for each question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import DoesNotFit, InputError
from weights import Checkpoint
from wim.chunks import Chunk, split_document
from wim.prompt_ids import PromptIds
from wim.prompts import Prompts
from wim.settings import Settings

NOTE_EDGES = 8  # tokens that a margin may cost in a prompt beyond its own: the dash, the line's end, words split anew


@dataclass(frozen=True)
class Plan:
    """A document cut into chunks, the settings, and the room that any of the questions can need.

    capacity: positions of the cache: header, document, and what may follow it
    longest: the last position that a token can get, plus one; what the model's context must hold
    classifier_prompts: None where no verdicts are wanted
    verdict_capacity: positions of the second cache, in which margins are judged; 0 where it is not needed
    longest_verdict: the most positions of one verdict
    prompts_together: the most tokens of prompts that one forward pass reads, those of a window's margins or verdicts
    """

    settings: Settings
    prompts: PromptIds
    classifier_prompts: PromptIds | None
    chunks: list[Chunk]
    capacity: int
    longest: int
    verdict_capacity: int
    longest_verdict: int
    prompts_together: int

    @property
    def document_tokens(self) -> int:
        return self.chunks[-1].end

    @property
    def window(self) -> int:
        """See Settings.window."""
        return self.settings.window(len(self.chunks))


def check_length(document: str, checkpoint: Checkpoint) -> None:
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
    checkpoint: Checkpoint,
    document: str,
    queries: list[str],
    settings: Settings,
    prompts: Prompts,
    classifier: Checkpoint | None = None,
    *,
    patterns: Sequence[str] | None = None,
    chunks: list[Chunk] | None = None,
) -> Plan:
    """Tokenize, cut, and add up.

    classifier: the checkpoint that judges margins, or None where no verdicts are wanted
    patterns: all that will be asked for, if it is not just that of the settings
    chunks: the document, if it has been cut already
    Raises InputError when there is nothing to read, and DoesNotFit when a context cannot hold it.
    """
    if settings.pack and (classifier is None or classifier.folder != checkpoint.folder):
        raise InputError("--pack has the model judge its own margins; leave out --classifier, or --pack.")
    if not document.strip():
        raise InputError("The document is empty; give a text to read.")
    own = PromptIds(checkpoint, prompts, settings.margin_tokens, settings.system)
    judge = PromptIds(classifier, prompts, settings.margin_tokens) if classifier is not None else None
    if chunks is None:
        check_length(document, checkpoint)
        chunks = split_document(document, checkpoint.tokenizer, settings.chunk_tokens)
    read = len(own.header) + chunks[-1].end
    window = settings.window(len(chunks))

    patterns = patterns or [settings.pattern]
    if "rag" in patterns:
        own.check_verdicts()
    if "wim" in patterns and judge is not None:
        judge.check_verdicts()
    longest_prompt, relevance, final, verdict = 0, 0, 0, 0
    note = settings.margin_tokens + NOTE_EDGES
    n_margins, n_lists = prompts.verdict.count("{margin}"), prompts.answer_with_margins.count("{margins}")
    for query in queries:
        if "wim" in patterns:
            longest_prompt = max(longest_prompt, *(len(own.margin(query, chunk.beginning)) for chunk in chunks))
            final = max(final, len(own.answer_with_margins(query, [])) + len(chunks) * note * n_lists)
            if judge is not None:
                verdict = max(verdict, len(judge.verdict(query, "")) + note * n_margins)
        if "rag" in patterns:
            relevance = max(relevance, len(own.relevance(query)))
        if "rag" in patterns or "llm" in patterns:
            final = max(final, len(own.answer(query)))
    branch = longest_prompt + settings.margin_tokens if longest_prompt else 0
    final += settings.answer_tokens

    longest = read + max(branch, relevance, final)
    limit = checkpoint.config.context_length
    if longest > limit:
        shorter = f"shorten the document by {longest - limit} tokens, " if longest - limit < chunks[-1].end else ""
        raise DoesNotFit(
            f"The document has {chunks[-1].end} tokens and needs {longest} positions with its prompts and replies (margins "
            f"of up to {settings.margin_tokens} tokens, an answer of up to {settings.answer_tokens}); "
            f"{checkpoint.name} has {limit}: {shorter}lower --margin-tokens or --answer-tokens, shorten the question, or "
            "take a model with a longer context."
        )
    header = len(judge.chat_header) if judge is not None else 0
    if verdict and header + verdict > classifier.config.context_length:
        raise DoesNotFit(
            f"A verdict needs {header + verdict} positions and the classifier {classifier.name} has "
            f"{classifier.config.context_length}; lower --margin-tokens or take another classifier."
        )
    return Plan(
        settings=settings,
        prompts=own,
        classifier_prompts=judge,
        chunks=chunks,
        # In `rag`, a chunk alone may be judged on all the questions at once.
        capacity=read + max(window * branch, len(queries) * relevance, final),
        longest=longest,
        verdict_capacity=header + window * verdict if verdict else 0,
        longest_verdict=header + verdict,
        prompts_together=max(window * longest_prompt, window * verdict, len(queries) * relevance),
    )
