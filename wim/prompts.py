"""The words that the model is asked with, all in one place, and how values are put into them.

A conversation is one user turn that grows: the chat format's header and `opening`, then the document, then one of the other
texts, then the chat format's closing, which hands the turn to the model. The verdict on a margin is a turn of its own.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace

from model.errors import InputError

PLACEHOLDER = re.compile(r"\{(query|beginning|margin|margins)\}")
OPTIONAL = {"beginning"}  # placeholders that a text of one's own can do without


@dataclass(frozen=True)
class Prompts:
    """The wording. `{query}`, `{beginning}`, `{margin}` and `{margins}` stand for the texts that `fill` puts in.

    opening: before the document
    margin: after a chunk; the reply is the margin (the paper's extractive summary, section 3). `{beginning}`, the chunk's
        first words, says which part is meant, as nothing in the cache marks where a chunk begins; it may be left out
    verdict: a turn of its own: does this margin help? (the paper's classification, section 3)
    relevance: after one chunk alone, for the pattern `rag`: does this chunk help?
    answer: after the document, for the patterns `llm` and `rag`
    answer_with_margins: after the document, for the pattern `wim`
    answer_with_underlines: the same where the margins are sentences of the document, word for word
    no_margins: stands for the margins when none was relevant; where it is empty, the prompt is then `answer`
    """

    opening: str = "Here is a document.\n\n"
    margin: str = (
        "\n\n---\nStop reading here for a moment. From the last part, which begins with these words, copy every sentence "
        "that helps to answer the question, word for word. If there is none, reply: None.\n"
        "Beginning: {beginning}\nQuestion: {query}"
    )
    verdict: str = (
        "This note was taken while reading a document:\n{margin}\n\n"
        "Does the note help to answer this question? Reply YES or NO.\nQuestion: {query}"
    )
    relevance: str = "\n\n---\nDoes this text help to answer the question? Reply YES or NO.\nQuestion: {query}"
    answer: str = "\n\n---\nThe document ends here. Answer this question in as few words as possible.\nQuestion: {query}"
    answer_with_margins: str = (
        "\n\n---\nThe document ends here. These notes were taken while reading it:\n{margins}\n\n"
        "Answer this question in as few words as possible.\nQuestion: {query}"
    )
    answer_with_underlines: str = (
        "\n\n---\nThe document ends here. These sentences of it may help:\n{margins}\n\n"
        "Answer this question in as few words as possible.\nQuestion: {query}"
    )
    no_margins: str = ""

    def notes_template(self, only_quoted: bool) -> str:
        """The last prompt, where all notes are sentences of the document or some are not."""
        return self.answer_with_underlines if only_quoted else self.answer_with_margins

    def changed(self, texts: object, source: str) -> Prompts:
        """With some texts replaced. Raises InputError, which names the source, for what is no dictionary of good texts."""
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise InputError(f"{source} should hold one JSON object whose values are texts.")
        originals = asdict(Prompts())
        for name, text in texts.items():
            if name not in originals:
                raise InputError(f"{source} names {name!r}; the texts are: {', '.join(originals)}.")
            wanted, found = set(PLACEHOLDER.findall(originals[name])), set(PLACEHOLDER.findall(text))
            required, optional = wanted - OPTIONAL, wanted & OPTIONAL
            if not required <= found <= wanted:
                may = f" (and may hold {_listed(optional)})" if optional else ""
                raise InputError(
                    f"{source}: {name!r} should hold the placeholders {_listed(required)}{may} and holds {_listed(found)}."
                )
        return replace(self, **texts)


def fill(template: str, **values: str) -> str:
    """Put the values into a text in one pass: what a value contains is never looked at again."""
    return PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def list_margins(prompts: Prompts, margins: list[str]) -> str:
    """The relevant margins as they stand in the final prompt: one a line, in the order of the document."""
    return "\n".join(f"- {one_line(margin)}" for margin in margins) or prompts.no_margins


def one_line(text: str) -> str:
    return " ".join(text.split())


def _listed(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names)) or "none"
