"""The chat format of a checkpoint: what is prefilled before the user's text and after it, and which tokens stop a reply.

A checkpoint brings its own template, a Jinja program. It is rendered with marks where texts go and cut there, so a long
text can be prefilled piece by piece, and no text ever passes through the template. What the texts are is for others.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.errors import InputError
from weights.files import read_json, read_text
from weights.text.tokenizer import Tokenizer

# Letters only, so that no filter of a template (trim, tojson, escape, ...) changes them.
USER_MARK = "WhereTheTextOfTheUserGoes"
SYSTEM_MARK = "WhereTheSystemPromptGoes"


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
    tokenizer wants one and the template writes none, and that a text's own white space at its beginning or end stays: a
    template may trim it, and a vocabulary may join it with the line breaks around it.

    stop_ids: ids that end a reply
    """

    def __init__(self, template: str, tokenizer: Tokenizer, eos_ids: frozenset[int], source: str = "the chat template"):
        self._tokenizer = tokenizer
        self._source = source
        try:
            self._template = _environment().from_string(template)
        except (jinja2.TemplateSyntaxError, RecursionError) as error:
            line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise InputError(f"{source} is not a valid template ({line}{error}); download it again.") from None
        closing = self.prompt_pieces(None).closing
        end_of_turn = next((token_id for token_id in closing if token_id in tokenizer.control_ids), None)
        self.stop_ids = eos_ids if end_of_turn is None else eos_ids | {end_of_turn}

    @classmethod
    def from_folder(cls, folder: Path | str, tokenizer: Tokenizer) -> ChatFormat:
        """Read chat_template.jinja, else the template in tokenizer_config.json. Raises InputError where there is none."""
        folder = Path(folder)
        template, source = _read_template(folder)
        return cls(template, tokenizer, _eos_ids(folder, tokenizer), source)

    def prompt_pieces(self, system: str | None) -> Pieces:
        """What stands before the user's text and after it; the header begins with exactly one BOS for models that have one.

        system: the system prompt, plain text like any other; None for none (some templates then put in their own)
        Raises InputError for a template that does not take such a conversation.
        """
        messages = [{"role": "user", "content": USER_MARK}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": SYSTEM_MARK})
        rendered = self._render(messages)
        before, after = self._split(rendered, USER_MARK, "the user's text")
        if system is not None:
            self._split(rendered, SYSTEM_MARK, "the system prompt")

        before, lead = _cut_spaces(before)
        header = self._encode(before, system, start=True)
        tokenizer = self._tokenizer
        if tokenizer.adds_bos and tokenizer.bos_id not in header[:1]:
            header = [tokenizer.bos_id, *header]
        return Pieces(header, lead, self._encode(after, system, start=False))

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._tokenizer.named
            )
        except Exception as error:  # a template is a program: anything may go wrong in it
            roles = " and ".join(message["role"] for message in messages)
            raise InputError(
                f"{self._source} refuses a conversation of {roles} ({error})"
                + ("; leave the system prompt out." if len(messages) > 1 else "; use a chat checkpoint.")
            ) from None

    def _split(self, rendered: str, mark: str, what: str) -> tuple[str, str]:
        parts = rendered.split(mark)
        if len(parts) != 2:
            raise InputError(
                f"{self._source} writes {what} {len(parts) - 1} times instead of once"
                + ("; leave the system prompt out." if mark is SYSTEM_MARK else "; use a checkpoint with a plain one.")
            )
        return parts[0], parts[1]

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


def _read_template(folder: Path) -> tuple[str, str]:
    """The template and where it was found."""
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja"), str(folder / "chat_template.jinja")
    template = read_json(folder / "tokenizer_config.json", optional=True).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        raise InputError(
            f"{folder} has no chat template (chat_template.jinja, or 'chat_template' in tokenizer_config.json); "
            "choose an instruction-tuned checkpoint, or add its template."
        )
    return template, f"The chat template in {folder / 'tokenizer_config.json'}"


def _eos_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """All ids that the checkpoint's files call an end: Llama 3.1 lists three."""
    ids = {tokenizer.token_id(tokenizer.named["eos_token"])} if "eos_token" in tokenizer.named else set()
    for name in ("generation_config.json", "config.json"):
        eos = read_json(folder / name, optional=True).get("eos_token_id")
        ids |= {token_id for token_id in (eos if isinstance(eos, list) else [eos]) if isinstance(token_id, int)}
    return frozenset(ids - {None})


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}, which tells a trainer what a model wrote; here it is what it holds."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives to templates, which they are written for; sandboxed, since they come from anywhere."""
    extensions = [loopcontrols, _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    # Jinja's own filter escapes HTML.
    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
