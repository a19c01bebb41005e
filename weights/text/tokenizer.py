"""Text to ids and back, with one rule: text is data.

`encode` is for what people and models wrote: a control token written there (`<|eot_id|>`, `</s>`, ...) is read letter by
letter. `encode_template` is for the fixed words of a checkpoint's own chat template, and the only way to a control token.
Which tokens there are is read off the checkpoint folder; what they mean in a conversation is for chat.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import InputError
from weights.files import read_json
from weights.text.backends import AddedToken, Ids, Spans, TextBackend
from weights.text.json_backend import JsonBackend
from weights.text.sentencepiece_backend import SentencePieceBackend
from weights.text.stream import TextStream

SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which no encoding can write


class Tokenizer:
    """The tokenizer of a checkpoint.

    `after`, wherever it appears, says what stands before the text: None for other text (the usual case: a prompt grows
    piece by piece), else the ids so far. It matters to SentencePiece vocabularies alone, which put a space before the
    first word of a prompt, and some also of the text after a control token.

    bos_id: the token that begins a prompt; None for models without one (Qwen2)
    adds_bos: the checkpoint wants it before every prompt, whether its chat template writes it or not
    named: what the checkpoint calls its tokens: {"bos_token": "<s>", "eos_token": ..., ...}
    control_ids: ids of control tokens; `encode` never gives one (but that for unknown characters, where the vocabulary
        has unknown characters), `decode` skips them
    vocab_size: all ids, those of added tokens too, are below it
    text_vocab_size: ids that `encode` gives are below it
    """

    def __init__(self, backend: TextBackend, added: dict[str, AddedToken], config: dict[str, Any]):
        self._backend = backend
        self._added = added
        self._added_by_id = {token.id: token for token in added.values()}
        # The longest first, so that of two that begin alike the longer is found.
        contents = sorted(added, key=len, reverse=True)
        self._added_pattern = re.compile("|".join(map(re.escape, contents)) or r"(?!)")

        self.control_ids = frozenset(token.id for token in added.values() if token.is_control)
        # Unknown characters are text, though their token is listed with the control tokens.
        self._forbidden = self.control_ids - {backend.unk_id}
        self.named = {name: content for name in config if name.endswith("_token") and (content := _content(config[name]))}
        if "bos_token" not in config and backend.first_id in self._added_by_id:
            self.named["bos_token"] = self._added_by_id[backend.first_id].content
        self.bos_id = self.token_id(self.named["bos_token"]) if "bos_token" in self.named else None
        self.adds_bos = bool(config.get("add_bos_token", backend.first_id is not None)) and self.bos_id is not None
        self.text_vocab_size = backend.size
        self.vocab_size = max([backend.size - 1, *self._added_by_id]) + 1

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """Read tokenizer.json, or tokenizer.model where there is none. Raises InputError when neither can be used."""
        folder = Path(folder)
        config = read_json(folder / "special_tokens_map.json", optional=True)
        config |= read_json(folder / "tokenizer_config.json", optional=True)
        backend: TextBackend
        if (folder / "tokenizer.json").exists():
            backend = JsonBackend(folder / "tokenizer.json")
        elif (folder / "tokenizer.model").exists():
            backend = SentencePieceBackend(folder / "tokenizer.model", config)
        else:
            raise InputError(f"{folder} has neither tokenizer.json nor tokenizer.model; add its tokenizer to it.")
        try:
            added = _added_tokens(folder, backend, config)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"The added tokens in {folder} cannot be understood ({type(error).__name__}: {error}); "
                "download tokenizer_config.json and added_tokens.json again."
            ) from None
        return cls(backend, added, config)

    def encode(self, text: str, *, after: Sequence[int] | None = None) -> Ids:
        """The ids of a text, read as plain text to the last character. No BOS, no EOS."""
        return self.encode_with_offsets(text, after=after)[0]

    def encode_with_offsets(self, text: str, *, after: Sequence[int] | None = None) -> tuple[Ids, Spans]:
        """The ids of a text and, for each, the characters [start, end) of the text that it stands for.

        The tokens of one character that is written in several all have that character's span. A lone surrogate is read
        as U+FFFD.
        """
        return self._encode_plain(SURROGATES.sub("\ufffd", text), self._prefix(after))

    def encode_template(self, text: str, *, after: Sequence[int] | None = ()) -> Ids:
        """The ids of a piece of a rendered chat template, control tokens recognised. Nothing is added to it.

        Equal to what the checkpoint's whole tokenizer makes of it, for `after` = (): the start of a prompt.
        """
        ids: Ids = list(after or ())
        known = len(ids)
        at, boundary = 0, after
        for match in self._added_pattern.finditer(text):
            if match.start() < at:  # swallowed by the token before it
                continue
            token = self._added[match[0]]
            before = text[at : match.start()]
            ids += self._encode_plain(before.rstrip() if token.lstrip else before, self._prefix(boundary))[0]
            ids.append(token.id)
            at, boundary = match.end(), ids
            if token.rstrip:
                at += len(text[at:]) - len(text[at:].lstrip())
        ids += self._encode_plain(text[at:], self._prefix(boundary))[0]
        return ids[known:]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; control tokens and ids beyond the vocabulary give nothing.

        Of bytes that are no UTF-8, U+FFFD. Nothing is tidied up: the text is what the ids say.
        """
        stream = self.stream()
        return "".join(map(stream.put, ids)) + stream.flush()

    def stream(self) -> TextStream:
        """Decode ids one by one, as they are generated."""
        return TextStream(self._token_bytes, self._backend.strips_space)

    def token_id(self, content: str) -> int | None:
        """The id of a token by its content, added tokens first; None when there is none."""
        return self._added[content].id if content in self._added else self._backend.token_id(content)

    def _token_bytes(self, token_id: int) -> bytes:
        token = self._added_by_id.get(token_id)
        if token is None:
            return self._backend.token_bytes(token_id)
        return b"" if token.is_control else token.content.encode()

    def _prefix(self, after: Sequence[int] | None) -> bool:
        if after is None:
            return False
        if not after:
            return self._backend.prefix_at_start
        return self._backend.prefix_after_control and after[-1] in self._added_by_id

    def _encode_plain(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        ids, spans = self._backend.encode(text, prefix)
        # Some vocabularies hold their control tokens among the learnt pieces. Where one was found in the text, cut the
        # text inside of it and read the parts: no part holds it any more.
        cuts = [
            start + 1
            for token_id, (start, end) in zip(ids, spans, strict=True)
            if token_id in self._forbidden and end - start > 1
        ]
        if not cuts:
            return ids, spans
        ids, spans = [], []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            part_ids, part_spans = self._encode_plain(text[start:end], prefix and start == 0)
            ids += part_ids
            spans += [(start + a, start + b) for a, b in part_spans]
        return ids, spans


def _content(token: Any) -> str | None:
    """A token as configuration files write it: its content, or an object that has it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _added_tokens(folder: Path, backend: TextBackend, config: dict[str, Any]) -> dict[str, AddedToken]:
    """All added tokens by content. What a later source says of a token replaces what an earlier one said."""
    tokens: dict[str, AddedToken] = {}
    for content, token_id in read_json(folder / "added_tokens.json", optional=True).items():
        tokens[content] = AddedToken(content, int(token_id))
    for name, token in config.items():
        content = _content(token) if name.endswith("_token") else None
        if content and (token_id := backend.token_id(content)) is not None:
            tokens[content] = AddedToken(content, token_id)
    for token_id, token in (config.get("added_tokens_decoder") or {}).items():
        flags = {name: bool(token.get(name, False)) for name in ("special", "lstrip", "rstrip")}
        tokens[token["content"]] = AddedToken(token["content"], int(token_id), **flags)
    for token in backend.added_tokens:
        if isinstance(backend, JsonBackend) or token.content not in tokens:
            tokens[token.content] = token
    if any(not isinstance(content, str) for content in tokens):
        raise TypeError("a token whose content is no text")
    return {content: token for content, token in tokens.items() if content}
