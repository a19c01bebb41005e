"""`tokenizer.json`, through the tokenizers library, with all that is not learnt from text taken off it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer as FastTokenizer

from model.errors import InputError
from weights.files import read_json
from weights.text.added_tokens import FLAGS, MAX_ID, AddedToken
from weights.text.backends import SPACE, Ids, Spans, piece_bytes, sentence, without_stderr


def _byte_of() -> dict[str, int]:
    """Byte-level vocabularies write a byte as one visible character: itself, or the next unused one from U+0100 on."""
    hidden = [byte for byte in range(256) if not chr(byte).isprintable() or byte == ord(" ")]
    return {chr(byte): byte for byte in range(256) if byte not in hidden} | {
        chr(256 + index): byte for index, byte in enumerate(hidden)
    }


BYTE_OF = _byte_of()


class JsonBackend:
    """`tokenizer.json`, through the tokenizers library."""

    lists_flags = True
    # A byte, a compatibility character and a symbol of four bytes: what cannot be read shows here, not within a document.
    PROBE = "A a1  \0\n ﬁ 好 🙂"

    def __init__(self, path: Path):
        self._path = path
        spec = read_json(path)
        with sentence(f"{path} is not a tokenizer that can be read ({{}}); download it again."), without_stderr():
            self._read(spec)
            self.reader(self.added_tokens).encode(self.PROBE, True)
            self.reader([]).encode(self.PROBE, False)

    def _read(self, spec: dict[str, Any]) -> None:
        whole = FastTokenizer.from_file(str(self._path))
        normalizer, scheme_n = _without_prefix(spec.get("normalizer"))
        pre_tokenizer, scheme_p = _without_prefix(spec.get("pre_tokenizer"))
        self.prefix_at_start = bool(scheme_n or scheme_p)
        self.prefix_after_control = "always" in (scheme_n, scheme_p)
        self._normalizer_prepends = bool(scheme_n)
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        bare = FastTokenizer.from_str(
            json.dumps(
                {**spec, "model": empty, "added_tokens": [], "post_processor": None, "decoder": None}
                | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "truncation": None, "padding": None}
            )
        )
        self._model, self._whole_steps, self._bare_steps = whole.model, whole, bare
        self._plain = FastTokenizer(whole.model)

        decoders = _flat(spec.get("decoder"), "decoders")
        kinds = {step.get("type") for step in decoders}
        if "ByteLevel" in kinds:
            self._byte_level = True
        elif kinds & {"Metaspace", "ByteFallback", "Replace"}:
            self._byte_level = False
        else:
            raise InputError(
                f"{self._path} decodes with {', '.join(map(str, kinds)) or 'nothing'}; only byte-level and "
                "SentencePiece-like tokenizers are supported, as the supported families have them."
            )
        self.strips_space = "Strip" in kinds or any(
            step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never" for step in decoders
        )
        pieces = spec["model"]["vocab"]  # with their ids; those of Unigram in the order of their ids
        self.size = max(pieces.values(), default=-1) + 1 if isinstance(pieces, dict) else len(pieces)
        if not 0 < self.size <= MAX_ID:
            raise ValueError(f"its vocabulary has ids up to {self.size - 1}")
        unk = getattr(whole.model, "unk_token", None)
        self.unk_id = self._plain.token_to_id(unk) if unk is not None else spec["model"].get("unk_id")
        self.added_tokens = []
        for listed in spec["added_tokens"]:
            token = AddedToken(listed["content"], listed["id"], **{flag: listed[flag] for flag in FLAGS})
            # The library gives it the next free id, whatever the file says, and the content that it looks for.
            token_id = whole.token_to_id(token.content)
            text = whole.id_to_token(token_id).replace(SPACE, " ") if token.normalized and not self._byte_level else None
            self.added_tokens.append(replace(token, id=token_id, text=text))
        with_first, without = (whole.encode("a", add_special_tokens=add).ids for add in (True, False))
        self.first_id = with_first[0] if with_first[:1] != without[:1] else None

    def reader(self, tokens: Iterable[AddedToken]) -> JsonReader:
        # Built on the vocabulary alone, so other added tokens and the post-processor's BOS are unknown to it. The model is
        # shared by all, not copied.
        tokens = list(tokens)
        tokenizers = []
        for steps in (self._whole_steps, self._bare_steps):
            tokenizer = FastTokenizer(self._model)
            if steps.normalizer is not None:
                tokenizer.normalizer = steps.normalizer
            if steps.pre_tokenizer is not None:
                tokenizer.pre_tokenizer = steps.pre_tokenizer
            # A normalizer that sets a space before a text does so before these tokens, too.
            spaces = self._normalizer_prepends and steps is self._bare_steps
            contents = [" " * (spaces and token.normalized) + token.content for token in tokens]
            flags = ({name: getattr(token, name) for name in FLAGS if name != "special"} for token in tokens)
            tokenizer.add_tokens([LibraryToken(text, **kinds) for text, kinds in zip(contents, flags, strict=True)])
            ids = {tokenizer.token_to_id(content): token.id for content, token in zip(contents, tokens, strict=True)}
            tokenizers.append((tokenizer, ids))
        return JsonReader(*tokenizers, self.prefix_after_control, self._path)

    def token_bytes(self, token_id: int) -> bytes:
        piece = self._plain.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode() for c in piece)
        return piece_bytes(piece)

    def token_id(self, content: str) -> int | None:
        return self._plain.token_to_id(content)


class JsonReader:
    """Reads with two tokenizers of the library, each with the id of each added token by the one that the library gave it.

    prefixing, plain: as at the start of a prompt, and within it
    prefix_after_token: what follows an added token is read as at the start
    """

    def __init__(
        self,
        prefixing: tuple[FastTokenizer, dict[int, int]],
        plain: tuple[FastTokenizer, dict[int, int]],
        prefix_after_token: bool,
        path: Path,
    ):
        self._prefixing, self._plain, self._path = prefixing, plain, path
        self._added = set(plain[1].values())
        self._prefix_after_token = prefix_after_token

    def encode(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        if prefix:
            return self._read(self._prefixing, text)
        ids, spans = self._read(self._plain, text)
        if self._prefix_after_token and not self._added.isdisjoint(ids):
            first = next(index for index, token_id in enumerate(ids) if token_id in self._added)
            others, other_spans = self._read(self._prefixing, text)
            ends = (i for i, span in enumerate(other_spans) if span[1] == spans[first][1] and others[i] in self._added)
            if (same := next(ends, None)) is not None:
                return ids[: first + 1] + others[same + 1 :], spans[: first + 1] + other_spans[same + 1 :]
        return ids, spans

    def _read(self, reader: tuple[FastTokenizer, dict[int, int]], text: str) -> tuple[Ids, Spans]:
        tokenizer, numbers = reader
        with sentence(f"{self._path} cannot read this text ({{}}); download it again."):
            encoding = tokenizer.encode(text, add_special_tokens=False)
        ids = encoding.ids
        if any(given != token_id for given, token_id in numbers.items()):
            ids = [numbers.get(token_id, token_id) for token_id in ids]
        return ids, encoding.offsets


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
