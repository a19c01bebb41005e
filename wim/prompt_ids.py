"""The project's prompts (wim/prompts.py) as token ids of one checkpoint, in its chat format."""

from __future__ import annotations

from collections.abc import Collection

from model import InputError
from wim.contracts import Source
from wim.prompts import Prompts, fill, list_margins, one_line

EMPTY = "N/A"  # a question that asks for nothing: what it makes a model look at, every question does


class PromptIds:
    """The prompts of one checkpoint as token ids.

    header: what stands before the document: the chat format's header and the words that open the prompt
    chat_header: the first of the two alone, before a verdict
    closing: what the chat format writes after the user's text, so that the model replies (see weights/text/chat.py)
    stop_ids: the tokens that end a reply
    margin_tokens: what a margin may take in a prompt, see `_note`
    yes, no: the first tokens of a reply that says yes or no, however it is spelt
    Raises InputError when the chat template takes no system prompt.
    """

    def __init__(self, checkpoint: Source, prompts: Prompts, margin_tokens: int, system: str | None = None):
        self.prompts, self.tokenizer, self.margin_tokens = prompts, checkpoint.tokenizer, margin_tokens
        self.chat_header, self._lead, self.closing = checkpoint.chat.prompt_pieces(system)
        self.header = self.chat_header + self._first(prompts.opening)
        self.stop_ids = checkpoint.chat.stop_ids
        begun, (yes, no) = checkpoint.chat.reply_starts(("YES", "Yes", "yes"), ("NO", "No", "no"))
        self._to_verdict = self.closing + begun
        self.yes, self.no = sorted(yes - no), sorted(no - yes)
        self._name = checkpoint.name

    def check_verdicts(self) -> None:
        """Raises InputError when the tokenizer cannot tell YES from NO."""
        if not self.yes or not self.no:
            raise InputError(
                f"The tokenizer of {self._name} begins YES and NO with the same token, so no verdict can be read off; "
                "use --classifier none or another classifier, and not the pattern rag."
            )

    def margin(self, query: str, beginning: str) -> list[int]:
        """Behind a chunk; the reply is the margin. beginning: the chunk's first words"""
        return self._ask(self.prompts.margin, query=query, beginning=beginning)

    def relevance(self, query: str) -> list[int]:
        """Behind one chunk alone, up to where the reply begins with YES or NO."""
        return self.tokenizer.encode(fill(self.prompts.relevance, query=query)) + self._to_verdict

    def answer(self, query: str) -> list[int]:
        """Behind the document, without margins."""
        return self._ask(self.prompts.answer, query=query)

    def answer_with_margins(self, query: str, margins: list[str], quoted: Collection[str] = ()) -> list[int]:
        """Behind the document, with margins. Without any, it is `answer`, unless the wording has a text for `no_margins`.

        quoted: those of the margins that are sentences of the document, and so no longer than these
        """
        cut = [margin if margin in quoted else self._note(one_line(margin)) for margin in margins]
        notes = list_margins(self.prompts, cut)
        if not notes:
            return self.answer(query)
        only_quoted = bool(margins) and all(margin in quoted for margin in margins)
        return self._ask(self.prompts.notes_template(only_quoted), query=query, margins=notes)

    def look(self, query: str) -> tuple[list[int], range]:
        """The prompt for an answer, and which of its tokens are the question's."""
        template = self.prompts.answer
        start = template.index("{query}")
        ids, spans = self.tokenizer.encode_with_offsets(fill(template, query=query))
        inside = [i for i, (a, b) in enumerate(spans) if a < start + len(query) and b > start]
        return ids + self.closing, range(inside[0], inside[-1] + 1)

    def verdict(self, query: str, margin: str) -> list[int]:
        """A turn of its own: what follows the chat header, which all verdicts share."""
        return self._first(fill(self.prompts.verdict, query=query, margin=self._note(margin))) + self._to_verdict

    def _note(self, margin: str) -> str:
        """A margin that, tokenized again, keeps to the room planned for it: odd text can come back as more tokens."""
        while (n_tokens := len(self.tokenizer.encode(margin))) > self.margin_tokens:
            margin = margin[: len(margin) * self.margin_tokens // n_tokens]
        return margin

    def _ask(self, template: str, **values: str) -> list[int]:
        return self.tokenizer.encode(fill(template, **values)) + self.closing

    def _first(self, text: str) -> list[int]:
        """A text right after the chat header."""
        return self.tokenizer.encode(self._lead + text, after=self.chat_header)
