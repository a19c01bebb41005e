"""wim/contracts.py: the project's own session, tokenizer and chat format, and the worked session, keep to it."""

from __future__ import annotations

import inspect

import pytest
from transformers_session import TransformersSession

from model.session import Session
from weights import ChatFormat, Tokenizer
from weights.text.stream import TextStream
from wim import contracts


def verbs(protocol):
    return {name: what for name, what in vars(protocol).items() if inspect.isfunction(what) and not name.startswith("_")}


@pytest.mark.parametrize(
    "protocol, kind",
    [
        (contracts.Session, Session),
        (contracts.FullSession, Session),
        (contracts.Session, TransformersSession),
        (contracts.Tokenizer, Tokenizer),
        (contracts.Stream, TextStream),
        (contracts.ChatFormat, ChatFormat),
    ],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_each_verb_takes_what_the_contract_says(protocol, kind):
    assert verbs(protocol)
    for name, wanted in verbs(protocol).items():
        found = inspect.signature(getattr(kind, name)).parameters.values()
        expected = inspect.signature(wanted).parameters.values()
        assert [(each.name, each.kind, each.default) for each in found] == [
            (each.name, each.kind, each.default) for each in expected
        ], name
    for name in ("length",) if protocol is contracts.Session else ():
        assert isinstance(inspect.getattr_static(kind, name), property)
