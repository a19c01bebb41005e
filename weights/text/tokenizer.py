"""Text to ids and back, with one rule: text is data.

`encode` is for what people and models wrote: a control token written there (`<|eot_id|>`, `[INST]`, ...) is read letter by
letter. `encode_template` is for the fixed words of a checkpoint's own chat template, and the only way to a control token.
A token is a control token when the checkpoint calls it special, when it ends a reply, or when the chat template writes it;
all other added tokens are read as published. What they mean in a conversation is for chat.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import InputError
from weights.files import read_json
from weights.text.added_tokens import (
    MAX_ID,
    AddedToken,
    control_tokens,
    read_added_tokens,
    read_end_ids,
    special_names,
)
from weights.text.backends import Ids, Spans, TextBackend
from weights.text.json_backend import JsonBackend
from weights.text.sentencepiece_backend import SentencePieceBackend
from weights.text.stream import TextStream
from weights.text.template import SURROGATES, fixed_words


class Tokenizer:
    """The tokenizer of a checkpoint.

    `after`, wherever it appears, says what stands before the text: None for other text (the usual case: a prompt grows
    piece by piece), else the ids so far. It matters to SentencePiece vocabularies alone, which put a space before the
    first word of a prompt, and some also of the text after a control token.

    written: the fixed words of the chat template; None for none. An added token in them is a control token
    ends: ids that end a reply; those of added tokens are control tokens, too
    limit: ids that the model knows are below it; text is read without added tokens beyond

    bos_id: the token that begins a prompt; None for models without one (Qwen2)
    adds_bos: the checkpoint wants it before every prompt, whether its chat template writes it or not
    named: what the checkpoint calls its tokens: {"bos_token": "<s>", "eos_token": ..., ...}
    control_ids: ids of control tokens; `encode` never gives one (but that for unknown characters, where the vocabulary
        has unknown characters). Those that are special or end a reply give no text either
    vocab_size: all ids, those of added tokens too, are below it
    text_vocab_size: ids that `encode` gives are below it
    """

    def __init__(
        self,
        backend: TextBackend,
        added: dict[str, AddedToken],
        config: dict[str, Any],
        written: list[str] | None = None,
        ends: set[int] = frozenset(),
        limit: int = MAX_ID,
    ):
        self._backend = backend
        self._added = added
        self._added_by_id = {token.id: token for token in added.values()}
        self._template_reader = backend.reader(added.values())
        self.named = special_names(config)
        if "bos_token" not in config and backend.first_id in self._added_by_id:
            self.named["bos_token"] = self._added_by_id[backend.first_id].content
        self.bos_id = self.token_id(self.named["bos_token"]) if "bos_token" in self.named else None
        self.adds_bos = bool(config.get("add_bos_token", backend.first_id is not None)) and self.bos_id is not None

        if written is not None:
            written = {token_id for words in written for token_id in self._template_reader.encode(words, True)[0]}
        self.control_ids = control_tokens(added.values(), ends, written)
        self._silent = control_tokens(added.values(), ends, ())
        # Unknown characters are text, though their token is listed with the control tokens.
        self._forbidden = self.control_ids - {backend.unk_id}
        text_tokens = [token for token in added.values() if token.id not in self.control_ids and token.id < limit]
        self._text_reader = backend.reader(text_tokens)
        self.text_vocab_size = max([backend.size - 1, *(token.id for token in text_tokens)]) + 1
        self.vocab_size = max([backend.size - 1, *self._added_by_id]) + 1

    @classmethod
    def from_folder(cls, folder: Path | str, vocab_size: int = MAX_ID) -> Tokenizer:
        """Read tokenizer.json, or tokenizer.model where there is none. Raises InputError when neither can be used.

        vocab_size: of the model. Some checkpoints list added tokens for which it has no embedding
        """
        folder = Path(folder)
        config = read_json(folder / "special_tokens_map.json", optional=True)
        config |= read_json(folder / "tokenizer_config.json", optional=True)
        backend: TextBackend
        if (folder / "tokenizer.json").exists():
            backend = JsonBackend(folder / "tokenizer.json")
        elif (folder / "tokenizer.model").exists():
            backend = SentencePieceBackend(folder / "tokenizer.model", config)
        else:
            raise InputError(
                f"{folder} has neither tokenizer.json nor tokenizer.model; add one of them (a tekken.json is not read)."
            )
        added = read_added_tokens(folder, backend, config)
        written = fixed_words(folder, special_names(config))
        return cls(backend, added, config, written, read_end_ids(folder), vocab_size)

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
        return self._template_reader.encode(text, self._prefix(after))[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; special tokens, ends of a reply and ids beyond the vocabulary give nothing.

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

    def token_text(self, token_id: int) -> str:
        """What a token stands for, with its space: U+FFFD for a part of a character, nothing for a special token."""
        return self._token_bytes(token_id).decode(errors="replace")

    def _token_bytes(self, token_id: int) -> bytes:
        token = self._added_by_id.get(token_id)
        if token is None:
            return self._backend.token_bytes(token_id)
        return b"" if token_id in self._silent else (token.text or token.content).encode()

    def _prefix(self, after: Sequence[int] | None) -> bool:
        if after is None:
            return False
        if not after:
            return self._backend.prefix_at_start
        return self._backend.prefix_after_control and after[-1] in self._added_by_id

    def _encode_plain(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        ids, spans = self._text_reader.encode(text, prefix)
        # Some vocabularies hold control tokens among the learnt pieces. Where one was found in the text, cut the
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
