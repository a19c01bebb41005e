"""`tokenizer.model`, through the sentencepiece library, for folders that have no `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece

from model.errors import InputError
from weights.text.backends import SPACE, AddedToken, Ids, Spans, piece_bytes


class SentencePieceBackend:
    """`tokenizer.model`, through the sentencepiece library."""

    # A serialized message may be followed by more of its fields, which then win: here normalizer_spec (field 3) with
    # add_dummy_prefix (field 3) = false. See sentencepiece_model.proto and "merging" in the protocol buffer encoding.
    NO_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])
    # Capitals, spaces and compatibility characters come back as they are, or the model rewrites text.
    PROBE = "A  ① ﬁ "

    def __init__(self, path: Path, config: dict[str, Any]):
        try:
            proto = path.read_bytes()
            whole = sentencepiece.SentencePieceProcessor(model_proto=proto)
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto + self.NO_PREFIX)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path} is not a SentencePiece model ({error}); use its tokenizer.json instead.") from None
        self.path = path
        self.size = self._model.vocab_size()
        self.unk_id = self._model.unk_id()
        self.first_id = bos if (bos := self._model.bos_id()) >= 0 else None
        has_prefix = whole.encode("A") != self._model.encode("A")
        self.prefix_at_start = has_prefix and config.get("add_prefix_space") is not False
        # `legacy` (of transformers): every stretch of text between control tokens counts as a start.
        self.prefix_after_control = self.prefix_at_start and bool(config.get("legacy", False))
        self.strips_space = self.prefix_at_start
        self.added_tokens = [
            AddedToken(self._model.id_to_piece(token_id), token_id)
            for token_id in range(self.size)
            if self._is_control(token_id)
        ]
        self.encode(self.PROBE, prefix=False)

    def encode(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        shift = int(prefix and not text.startswith((" ", SPACE)) and text != "")
        text = " " * shift + text
        ids, pieces = self._model.encode(text, out_type=int), self._model.encode(text, out_type=str)
        spans = [(max(start - shift, 0), end - shift) for start, end in self._align(text, ids, pieces)]
        return ids, spans

    def token_bytes(self, token_id: int) -> bytes:
        return piece_bytes(self._model.id_to_piece(token_id)) if token_id < self.size else b""

    def token_id(self, content: str) -> int | None:
        token_id = self._model.piece_to_id(content)
        return None if token_id == self.unk_id and content != self._model.id_to_piece(token_id) else token_id

    def _is_control(self, token_id: int) -> bool:
        if self._model.is_control(token_id) or self._model.is_unknown(token_id):
            return True
        # "User-defined symbols" have no flag in this library; they are the unlearnt pieces, of score 0.
        piece = self._model.id_to_piece(token_id)
        unlearnt = not self._model.is_byte(token_id) and self._model.get_score(token_id) == 0
        return unlearnt and piece[:1] + piece[-1:] == "<>"

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
