"""`tokenizer.json`, through the tokenizers library, with all that is not learnt from text taken off it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from model.errors import InputError
from weights.files import read_json
from weights.text.backends import AddedToken, Ids, Spans, piece_bytes


def _byte_of() -> dict[str, int]:
    """Byte-level vocabularies write a byte as one visible character: itself, or the next unused one from U+0100 on."""
    hidden = [byte for byte in range(256) if not chr(byte).isprintable() or byte == ord(" ")]
    return {chr(byte): byte for byte in range(256) if byte not in hidden} | {
        chr(256 + index): byte for index, byte in enumerate(hidden)
    }


BYTE_OF = _byte_of()


class JsonBackend:
    """`tokenizer.json`, through the tokenizers library."""

    def __init__(self, path: Path):
        spec = read_json(path)
        try:
            whole = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(f"{path} is not a tokenizer that can be read ({error}); download it again.") from None
        normalizer, scheme_n = _without_prefix(spec.get("normalizer"))
        pre_tokenizer, scheme_p = _without_prefix(spec.get("pre_tokenizer"))
        self.prefix_at_start = bool(scheme_n or scheme_p)
        self.prefix_after_control = "always" in (scheme_n, scheme_p)

        # Built on the vocabulary alone, so added tokens and the post-processor's BOS are unknown to it. The model is
        # shared by all three, not copied.
        self._prefixing = FastTokenizer(whole.model)
        self._plain = FastTokenizer(whole.model)
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        bare = FastTokenizer.from_str(
            json.dumps(
                {**spec, "model": empty, "added_tokens": [], "post_processor": None, "decoder": None}
                | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "truncation": None, "padding": None}
            )
        )
        for tokenizer, steps in ((self._prefixing, whole), (self._plain, bare)):
            if steps.normalizer is not None:
                tokenizer.normalizer = steps.normalizer
            if steps.pre_tokenizer is not None:
                tokenizer.pre_tokenizer = steps.pre_tokenizer

        decoders = _flat(spec.get("decoder"), "decoders")
        kinds = {step.get("type") for step in decoders}
        if "ByteLevel" in kinds:
            self._byte_level = True
        elif kinds & {"Metaspace", "ByteFallback", "Replace"}:
            self._byte_level = False
        else:
            raise InputError(
                f"{path} decodes with {', '.join(map(str, kinds)) or 'nothing'}; only byte-level and SentencePiece-like "
                "tokenizers are supported, as Llama, Phi-3 and Qwen2 have them."
            )
        self.strips_space = "Strip" in kinds or any(
            step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never" for step in decoders
        )
        self.size = max(self._plain.get_vocab(with_added_tokens=False).values(), default=-1) + 1
        unk = getattr(whole.model, "unk_token", None)
        self.unk_id = self._plain.token_to_id(unk) if unk is not None else spec["model"].get("unk_id")
        self.added_tokens = [
            AddedToken(**{field.name: token[field.name] for field in fields(AddedToken)})
            for token in spec.get("added_tokens", [])
        ]
        with_first, without = (whole.encode("a", add_special_tokens=add).ids for add in (True, False))
        self.first_id = with_first[0] if with_first[:1] != without[:1] else None

    def encode(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        encoding = (self._prefixing if prefix else self._plain).encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def token_bytes(self, token_id: int) -> bytes:
        piece = self._plain.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode() for c in piece)
        return piece_bytes(piece)

    def token_id(self, content: str) -> int | None:
        return self._plain.token_to_id(content)


def _without_prefix(step: dict[str, Any] | None) -> tuple[dict[str, Any] | None, str | None]:
    """A normalizer or pre-tokenizer that sets no space before the text, and when the original does.

    The second is None (never), "first" (at the start of a prompt) or "always" (after control tokens too).
    """
    if step is None:
        return None, None
    kind = step.get("type")
    if kind == "Prepend":
        return None, "always"
    if kind == "Metaspace":
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        bare = {key: value for key, value in step.items() if key != "add_prefix_space"} | {"prepend_scheme": "never"}
        return bare, None if scheme == "never" else scheme
    if kind == "ByteLevel":
        return {**step, "add_prefix_space": False}, "always" if step.get("add_prefix_space") else None
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        parts = [_without_prefix(part) for part in step[key]]
        schemes = {scheme for _, scheme in parts if scheme}
        steps = [part for part, _ in parts if part is not None]
        return {**step, key: steps}, "always" if "always" in schemes else next(iter(schemes), None)
    return step, None


def _flat(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [inner for part in step[key] for inner in _flat(part, key)] if step.get("type") == "Sequence" else [step]
