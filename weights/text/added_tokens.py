"""Tokens that stand outside of the learnt vocabulary: which there are, and which of them text may not write.

Tokenizer files spread them over four places, and only some say of a token whether it is special.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.errors import InputError
from weights.files import read_json

MAX_ID = 2**24  # of an added token: the largest vocabularies in use have some hundred thousand
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class AddedToken:
    """A token that stands outside of the learnt vocabulary.

    special: as published: a reply is shown without it. None where no file says (tokenizer.model)
    single_word: it is read only where no letter or digit stands beside it
    lstrip, rstrip: it takes the white space before, or after it, with it
    normalized: it is looked for in the normalized text
    text: what it says in a reply, where that is not its content
    """

    content: str
    id: int
    special: bool | None = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    text: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.content, str):
            raise TypeError("a token whose content is no text")
        self.content.encode()  # raises UnicodeEncodeError, a ValueError, for half a character
        if type(self.id) is not int or not 0 <= self.id < MAX_ID:
            raise ValueError(
                f"token {self.content[:40]!r} has the id {self.id!r:.40}, which should be from 0 to {MAX_ID - 1}"
            )

    @property
    def could_mark(self) -> bool:
        """Whether a template can mark anything with it: not with white space, a letter or a digit."""
        return bool(self.content.strip()) and not (len(self.content) == 1 and self.content.isalnum())


def token_content(token: Any) -> str | None:
    """A token as configuration files write it: its content, or an object that has it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def special_names(config: dict[str, Any]) -> dict[str, str]:
    """What the configuration calls its tokens: {"bos_token": "<s>", ...}."""
    return {name: content for name in config if name.endswith("_token") and (content := token_content(config[name]))}


def special_contents(config: dict[str, Any]) -> set[str]:
    """The contents of all tokens that the configuration names as special."""
    contents = set(special_names(config).values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(key) or []
        tokens = listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else []
        contents |= {content for token in tokens if (content := token_content(token))}
    return contents


def read_added_tokens(folder: Path, backend: Any, config: dict[str, Any]) -> dict[str, AddedToken]:
    """All added tokens by content. Raises InputError for what cannot be understood.

    Ids are those of tokenizer.json, flags those of tokenizer_config.json where both have a token, as in transformers; it is
    special where one of the files calls it so.

    backend: a TextBackend
    config: tokenizer_config.json, with special_tokens_map.json
    """
    try:
        special = special_contents(config)
        tokens: dict[str, AddedToken] = {}
        for content, token_id in read_json(folder / "added_tokens.json", optional=True).items():
            named = content in special
            tokens[content] = AddedToken(content, token_id, special=named or None, normalized=not named)
        for content in special:
            if content not in tokens and (token_id := backend.token_id(content)) is not None:
                tokens[content] = AddedToken(content, token_id)
        for token_id, token in (config.get("added_tokens_decoder") or {}).items():
            flags = {name: bool(token.get(name, False)) for name in FLAGS}
            flags["special"] |= token["content"] in special
            tokens[token["content"]] = AddedToken(token["content"], int(token_id), **flags)
        decoder = {token["content"] for token in (config.get("added_tokens_decoder") or {}).values()}
        for token in backend.added_tokens:
            known, named = tokens.get(token.content), token.content in special
            if backend.lists_flags and known is not None and token.content in decoder:
                tokens[token.content] = replace(known, id=token.id, text=token.text, special=known.special or token.special)
            elif backend.lists_flags or known is None:
                tokens[token.content] = replace(token, special=named or token.special)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The added tokens in {folder} cannot be understood ({type(error).__name__}: {str(error)[:200]}); "
            "download tokenizer_config.json and added_tokens.json again."
        ) from None
    return {content: token for content, token in tokens.items() if content}


def read_end_ids(folder: Path) -> set[int]:
    """All ids that generation_config.json and config.json call an end of a reply: Llama 3.1 lists three."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        eos = read_json(folder / name, optional=True).get("eos_token_id")
        # No bool, which Python counts as a whole number.
        ids |= {token_id for token_id in (eos if isinstance(eos, list) else [eos]) if type(token_id) is int}
    return ids


def control_tokens(added: Iterable[AddedToken], ends: set[int], written: Sequence[int] | None) -> frozenset[int]:
    """The ids that text may not write: special tokens, ends of a reply, and what the chat template writes as one token.

    written: ids of what the template writes; None where there is no template. Then the look of a token has to tell, where
        no file does
    """
    control = set()
    for token in added:
        looks = written is None and token.special is None and token.content[0] == "<" and token.content[-1] == ">"
        marks = token.could_mark and (token.id in ends or token.id in (written or ()))
        if token.special or looks or marks:
            control.add(token.id)
    return frozenset(control)
