"""The chat template of a checkpoint: where it is, and what it makes of a conversation.

No reply begins with a thought: a model that thinks aloud would spend the tokens of a margin on it, and its first token
would be no verdict. Templates that know `enable_thinking` are told False. Where one opens a thought for the model all the
same, or its model is known to open one by itself, the conversation ends with an empty thought, `<think>\n\n</think>`.

A template is a Jinja program from anywhere. Whatever is wrong with it, or with what it does, is told in one sentence.
This module knows no tokens (tokenizer.py does), nor what a conversation is made of (chat.py does).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateSyntaxError, nodes

from model.errors import InputError
from weights.files import read_json, read_text
from weights.text.backends import sentence
from weights.text.sandbox import BoundedEnvironment
from weights.text.thoughts import CLOSE, OPEN

# Letters only, so that no filter of a template (trim, tojson, escape, ...) changes them.
USER_MARK = "WhereTheTextOfTheUserGoes"
SYSTEM_MARK = "WhereTheSystemPromptGoes"
REPLY_MARK = "WhereTheReplyOfTheModelGoes"
MARKS = re.compile("|".join((USER_MARK, SYSTEM_MARK, REPLY_MARK)))
SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which no encoding can write
MAX_CHARACTERS = 50_000  # of a template; the longest in use have a third of that


class ChatTemplate:
    """A template, compiled. Raises InputError for one that cannot be.

    source: where it comes from, as sentences about it begin
    """

    def __init__(self, text: str, source: str):
        self._source = source
        self._environment = BoundedEnvironment()
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"{source} has {len(text)} characters, which is no chat template; download it again.")
        with sentence(f"{source} is not a valid template ({{}}); download it again."):
            try:
                self._template = self._environment.from_string(text)
            except TemplateSyntaxError as error:
                raise ValueError(f"line {error.lineno}: {error.message}") from None
            self._literals = list(_literals(self._environment.parse(text)))
        # It takes thoughts out of earlier replies and writes none: DeepSeek-R1-0528-Qwen3-8B, and the first R1.
        self._thinks_unasked = CLOSE in text and OPEN not in text

    def render(self, named: dict[str, str], *, reply: bool = False, system: bool = False) -> str:
        """A conversation of one turn, with marks where texts go. A reply that is about to come begins with no thought.

        named: what the tokenizer calls its tokens
        reply: with what the model says; else the model is about to say it
        system: with a system prompt
        Raises InputError for a template that does not take such a conversation.
        """
        messages = [{"role": "user", "content": USER_MARK}]
        if system:
            messages.insert(0, {"role": "system", "content": SYSTEM_MARK})
        if reply:
            messages.append({"role": "assistant", "content": REPLY_MARK})
        self._environment.begin()
        roles = " and ".join(message["role"] for message in messages)
        advice = "leave the system prompt out" if system else "use a chat checkpoint"
        with sentence(f"{self._source} refuses a conversation of {roles} ({{}}); {advice}."):
            rendered = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=not reply,
                enable_thinking=False,
                **named,
            )
            if SURROGATES.search(rendered):
                raise ValueError("it writes half a character, a lone surrogate")
        return rendered if reply else self._without_thought(rendered)

    def _without_thought(self, rendered: str) -> str:
        """The conversation, with an empty thought behind the prompt for a reply that would begin with one."""
        before, mark, after = rendered.rpartition(USER_MARK)
        bare = rendered.rstrip().removesuffix(OPEN)
        opened = bare != rendered.rstrip()
        # Or its own system prompt asks for thoughts: Phi-4-reasoning.
        wanted = mark and CLOSE not in after and (self._thinks_unasked or CLOSE in before)
        return f"{bare if opened else rendered}{OPEN}\n\n{CLOSE}\n\n" if opened or wanted else rendered

    def split(self, rendered: str, mark: str) -> tuple[str, str]:
        """What stands before a mark and after it. Raises InputError where the template does not write it once."""
        parts = rendered.split(mark)
        if len(parts) != 2:
            what = {USER_MARK: "the user's text", SYSTEM_MARK: "the system prompt", REPLY_MARK: "the reply"}[mark]
            raise InputError(
                f"{self._source} writes {what} {len(parts) - 1} times instead of once"
                + ("; leave the system prompt out." if mark is SYSTEM_MARK else "; use a checkpoint with a plain one.")
            )
        return parts[0], parts[1]

    def words(self, named: dict[str, str]) -> list[str]:
        """All fixed words that it may write: those of plain conversations, and those that stand in it for others."""
        found = list(self._literals)
        try:
            for kind in ({}, {"reply": True}, {"system": True}):
                found += MARKS.split(self.render(named, **kind))
        except InputError:
            pass  # told when that conversation is wanted
        return [words for words in found if not SURROGATES.search(words)]


def read_template(folder: Path) -> ChatTemplate:
    """Read chat_template.jinja, else the template in tokenizer_config.json. Raises InputError where there is none."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return _compiled(read_text(path), str(path))
    path = folder / "tokenizer_config.json"
    template = read_json(path, optional=True).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[-1].get("template") if named else None
    elif isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise InputError(
            f"{folder} has no chat template (chat_template.jinja, or 'chat_template' in tokenizer_config.json: a text, or "
            "several of which one is named 'default'); choose an instruction-tuned checkpoint, or add its template."
        )
    return _compiled(template, f"The chat template in {path}")


@functools.lru_cache(maxsize=4)  # the tokenizer reads it, and the chat format
def _compiled(text: str, source: str) -> ChatTemplate:
    return ChatTemplate(text, source)


def fixed_words(folder: Path, named: dict[str, str]) -> list[str] | None:
    """`ChatTemplate.words` of a folder's template; None where it has none that can be used, which is told elsewhere."""
    try:
        return read_template(folder).words(named)
    except InputError:
        return None


def _literals(node: nodes.Node) -> Iterator[str]:
    """The texts in a template, without those that it only compares with, or looks up."""
    if isinstance(node, nodes.TemplateData):
        yield node.data
    elif isinstance(node, nodes.Const) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, nodes.Getitem):
        yield from _literals(node.node)
    elif isinstance(node, nodes.Pair):  # of a dictionary
        yield from _literals(node.value)
    elif not isinstance(node, (nodes.Compare, nodes.Test)):
        for child in node.iter_child_nodes():
            yield from _literals(child)
