"""The chat format of a checkpoint: what is prefilled before the user's text and after it, and which tokens stop a reply.

A checkpoint brings its own template, a Jinja program. It is rendered with marks where texts go and cut there, so a long
text can be prefilled piece by piece, and no text ever passes through the template. Others decide what the texts are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from model.errors import InputError
from weights.text.added_tokens import read_end_ids
from weights.text.template import REPLY_MARK, SYSTEM_MARK, USER_MARK, ChatTemplate, read_template
from weights.text.tokenizer import Tokenizer

END_OF_TURN = re.compile(r"|<(?!/?think>).*>")


class Pieces(NamedTuple):
    """A one-turn conversation around the user's text.

        [ header | lead + the user's text, by `tokenizer.encode` ... | closing ] the model replies here

    header, closing: token ids
    lead: spaces that the template writes right before the text, nearly always none: vocabularies join them with its first
        word. Encode the first text as `tokenizer.encode(lead + text, after=header)`
    """

    header: list[int]
    lead: str
    closing: list[int]


class ChatFormat:
    """The chat format of a checkpoint.

    The ids of its pieces, joined, equal those of the whole rendered template, but that a BOS is put before it where the
    tokenizer wants one and the template writes none, that white space before the template's own BOS is left out, that a
    text's own white space at its beginning or end stays (a template may trim it), and that no vocabulary joins the end of a
    text with line breaks that the template writes right behind it, as Mistral's does behind a system prompt.

    No reply begins with a thought; where it would, `closing` ends with an empty one (template.py).

    stop_ids: ids that end a reply
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, end_ids: set[int]):
        self._template, self._tokenizer = template, tokenizer
        self.stop_ids = frozenset(end_ids)
        if "eos_token" in tokenizer.named:
            self.stop_ids |= {tokenizer.token_id(tokenizer.named["eos_token"])} - {None}
        # The end of a turn: special tokens have no text, and not every checkpoint marks its own as special.
        marks = (token_id for token_id in self.prompt_pieces(None).closing if token_id in tokenizer.control_ids)
        self.stop_ids |= set([token_id for token_id in marks if END_OF_TURN.fullmatch(tokenizer.token_text(token_id))][:1])

    @classmethod
    def from_folder(cls, folder: Path | str, tokenizer: Tokenizer) -> ChatFormat:
        """Read chat_template.jinja, else the template in tokenizer_config.json. Raises InputError where there is none."""
        folder = Path(folder)
        return cls(read_template(folder), tokenizer, read_end_ids(folder))

    def prompt_pieces(self, system: str | None) -> Pieces:
        """What stands before the user's text and after it; the header begins with exactly one BOS for models that have one.

        system: the system prompt, plain text like any other; None for none (some templates then put in their own)
        Raises InputError for a template that does not take such a conversation.
        """
        before, after = self._around_user(system is not None)
        before, lead = _cut_spaces(before)
        header = self._one_bos(self._encode(before, system, start=True))
        return Pieces(header, lead, self._encode(after, system, start=False))

    def reply_starts(self, *choices: Sequence[str]) -> tuple[list[int], list[set[int]]]:
        """How a model that follows the format begins to say one of some words, and by which token one knows which.

        choices: for each thing that can be said, its spellings: ("YES", "Yes"), ("NO", "No")
        Returns ids that all these replies begin with, mostly none: read them after `closing`. And for each choice the ids
        that can come then. A word's first token is that after a space where the template writes one before a reply
        (Llama 2: " YES"), and the bare one. A token that is white space alone says nothing, so it counts as the beginning.
        """
        closing = self.prompt_pieces(None).closing
        encode = self._tokenizer.encode
        bare = [{encode(word, after=closing)[0] for word in words} for words in choices]
        space = self._space_before_reply()
        if not space:
            return [], bare
        spaced = [[encode(space + word, after=closing) for word in words] for words in choices]
        told = [{ids[0] for ids in replies if self._says_something(ids[0])} for replies in spaced]
        if all(told):
            return [], [first | bare_first for first, bare_first in zip(told, bare, strict=True)]
        silent = next(ids[0] for replies in spaced for ids in replies if not self._says_something(ids[0]))
        starts = [{ids[1] for ids in replies if ids[0] == silent and len(ids) > 1} for replies in spaced]
        return [silent], [start or bare_first for start, bare_first in zip(starts, bare, strict=True)]

    def _space_before_reply(self) -> str:
        """White space that the template writes between the prompt for a reply and the reply itself."""
        try:
            _, after = self._template.split(self._template.render(self._tokenizer.named, reply=True), USER_MARK)
            before_reply, _ = self._template.split(after, REPLY_MARK)
        except InputError:  # it takes no reply
            return ""
        space = before_reply.removeprefix(self._around_user(False)[1])
        return space if space.isspace() else ""

    def _says_something(self, token_id: int) -> bool:
        return bool(self._tokenizer.token_text(token_id).strip())

    def _around_user(self, system: bool) -> tuple[str, str]:
        """The rendered conversation before and after the user's text."""
        rendered = self._template.render(self._tokenizer.named, system=system)
        if system:
            self._template.split(rendered, SYSTEM_MARK)
        return self._template.split(rendered, USER_MARK)

    def _one_bos(self, header: list[int]) -> list[int]:
        """The header with the BOS once, where it has one or the tokenizer wants one."""
        bos = self._tokenizer.bos_id
        if bos not in header:
            return [bos, *header] if self._tokenizer.adds_bos else header
        start = len(header)
        for index, token_id in enumerate(header):
            if token_id == bos:
                start = index
            elif token_id in self._tokenizer.control_ids or self._says_something(token_id):
                break
        return header[start:] or header

    def _encode(self, piece: str, system: str | None, *, start: bool) -> list[int]:
        """A piece of the template, with the system prompt, as data, at its mark."""
        first, mark, rest = piece.partition(SYSTEM_MARK)
        first, lead = _cut_spaces(first) if mark else (first, "")
        ids = self._tokenizer.encode_template(first, after=() if start else None)
        if mark:
            ids += self._tokenizer.encode(lead + (system or ""), after=ids)
            ids += self._tokenizer.encode_template(rest, after=ids)
        return ids


def _cut_spaces(before: str) -> tuple[str, str]:
    """What a template writes before a text, and the spaces at its end, which belong to the text's first word."""
    kept = before.rstrip(" ")
    return kept, before[len(kept) :]
