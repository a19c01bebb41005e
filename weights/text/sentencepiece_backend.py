"""`tokenizer.model`, through the sentencepiece library, for folders that have no `tokenizer.json`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from model.errors import InputError
from weights.files import read_bytes
from weights.text.added_tokens import AddedToken
from weights.text.backends import SPACE, Ids, Spans, piece_bytes, sentence, without_stderr

USER_DEFINED = 4  # a kind of piece


class SentencePieceBackend:
    """`tokenizer.model`, through the sentencepiece library."""

    lists_flags = False
    # A serialized message may be followed by more of its fields, which then win: here normalizer_spec (field 3) with
    # add_dummy_prefix (field 3) = false. See sentencepiece_model.proto and "merging" in the protocol buffer encoding.
    NO_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])
    # Capitals, spaces and compatibility characters come back as they are, or the model rewrites text.
    PROBE = "A  ① ﬁ "

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path = path
        with sentence(f"{path} is not a SentencePiece model ({{}}); use its tokenizer.json instead."), without_stderr():
            self._read(read_bytes(path), config)
            self.encode(self.PROBE, prefix=False)

    def _read(self, proto: bytes, config: dict[str, Any]) -> None:
        whole = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto + self.NO_PREFIX)
        self.size = self._model.vocab_size()
        self.unk_id = self._model.unk_id()
        self.first_id = bos if (bos := self._model.bos_id()) >= 0 else None
        has_prefix = whole.encode("A") != self._model.encode("A")
        self.prefix_at_start = has_prefix and config.get("add_prefix_space") is not False
        # `legacy` (of transformers): every stretch of text between control tokens counts as a start.
        self.prefix_after_control = self.prefix_at_start and bool(config.get("legacy", False))
        self.strips_space = self.prefix_at_start
        control = {i: True for i in range(self.size) if self._model.is_control(i) or self._model.is_unknown(i)}
        symbols = {i: None for i, kind in enumerate(_piece_kinds(proto)) if kind == USER_DEFINED}
        self.added_tokens = [
            AddedToken(self._model.id_to_piece(token_id).replace(SPACE, " "), token_id, special)
            for token_id, special in sorted((control | symbols).items())
        ]

    def reader(self, tokens: Iterable[AddedToken]) -> SentencePieceReader:
        return SentencePieceReader(self, tokens)

    def encode(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        """As Reader.encode, with the tokens of the file alone."""
        shift = int(prefix and not text.startswith((" ", SPACE)) and text != "")
        text = " " * shift + text
        with sentence(f"{self.path} cannot read this text ({{}}); use its tokenizer.json instead."):
            ids, pieces = self._model.encode(text, out_type=int), self._model.encode(text, out_type=str)
            spans = [(max(start - shift, 0), end - shift) for start, end in self._align(text, ids, pieces)]
        return ids, spans

    def token_bytes(self, token_id: int) -> bytes:
        return piece_bytes(self._model.id_to_piece(token_id)) if token_id < self.size else b""

    def token_id(self, content: str) -> int | None:
        token_id = self._model.piece_to_id(content)
        return None if token_id == self.unk_id and content != self._model.id_to_piece(token_id) else token_id

    def _align(self, text: str, ids: Ids, pieces: list[str]) -> Spans:
        """The characters of each piece. Every token of a character written in bytes gets the whole character."""
        spans: Spans = []
        at, left = 0, 0  # `left`: bytes of the character at `at` that are still to come
        for token_id, piece in zip(ids, pieces, strict=True):
            if self._model.is_byte(token_id):
                left = left or len(text[at : at + 1].encode())
                left -= 1
                spans.append((at, at + 1))
                at += left == 0
            else:
                spans.append((at, at + len(piece)))
                if text[at : at + len(piece)].replace(" ", SPACE) != piece.replace(" ", SPACE):
                    break
                at += len(piece)
        if at != len(text):
            raise InputError(
                f"{self.path} rewrites text before reading it (Unicode normalisation or joined spaces), which is "
                "supported through tokenizer.json only; add that file to the folder."
            )
        return spans


class SentencePieceReader:
    """Cuts a text at added tokens, by their flags, as the tokenizers library does, and leaves the rest to the model."""

    def __init__(self, backend: SentencePieceBackend, tokens: Iterable[AddedToken]):
        self._backend = backend
        self._tokens = {token.content: token for token in tokens}
        # The longest first, so that of two that begin alike the longer is found.
        contents = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    def encode(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        ids: Ids = []
        spans: Spans = []
        at = 0

        def read(end: int) -> None:
            more_ids, more_spans = self._backend.encode(text[at:end], self._backend.prefix_after_control if ids else prefix)
            ids.extend(more_ids)
            spans.extend((at + a, at + b) for a, b in more_spans)

        for match in self._pattern.finditer(text):
            token, (start, end) = self._tokens[match[0]], match.span()
            beside = text[max(start - 1, 0) : start] + text[end : end + 1]
            if start < at or (token.single_word and re.search(r"\w", beside)):
                continue  # swallowed by the token before it, or a part of a word
            if token.lstrip:
                start = max(at, len(text[:start].rstrip()))
            if token.rstrip:
                end += len(text[end:]) - len(text[end:].lstrip())
            read(start)
            ids.append(token.id)
            spans.append((start, end))
            at = end
        read(len(text))
        return ids, spans


def _piece_kinds(proto: bytes) -> list[int]:
    """The kind of each piece, which the library does not tell for symbols that a user defined.

    In the protocol buffer encoding a message is a row of fields: a key (number * 8 + wire type), then a value. Field 1 of
    the model is a piece, field 3 of a piece its kind; see sentencepiece_model.proto.
    """
    return [
        next((kind for key, kind in _fields(piece) if key == 3 and kind), 1) for key, piece in _fields(proto) if key == 1
    ]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    at = 0

    def number() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key, wire_type = divmod(number(), 8)
        if wire_type == 0:
            yield key, number()
        else:
            length = number() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
            yield key, message[at : at + length]
            at += length
