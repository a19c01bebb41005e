"""scripts/transformers_session.py: the loop over a transformers model is the loop over the project's own session."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers_session import TransformersSession
from wim_helpers import DOCUMENT, OTHER, QUERY, READERS, open_wim, write_reader

from model import InputError
from wim.events import ChunkRead, Done, MarginDone, Noted
from wim.loop import WiM
from wim.verdict import Classifier


def over_transformers(wim, folder):
    """The same plan, over transformers' model of a checkpoint's folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    classifier = Classifier(TransformersSession(model), wim.plan.classifier_prompts)
    return WiM(wim.plan, TransformersSession(model), classifier)


def plainly(event):
    """An event without seconds, and with probabilities to rounding."""
    fields = dict(vars(event))
    if isinstance(event, MarginDone):
        fields = dict(vars(event.margin))
    elif isinstance(event, (Noted, Done)):
        fields |= {"seconds": None, "margins": [plainly(MarginDone(margin)) for margin in event.margins]}
    if fields.get("probability") is not None:
        fields["probability"] = pytest.approx(fields["probability"], abs=1e-4)
    return type(event).__name__, fields


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_reader(tmp_path_factory.mktemp(name), name) for name in READERS}


# transformers chooses LongRoPE's factors anew as a text grows past its original length; see model/rotary.py.
@pytest.mark.parametrize("name", [name for name in READERS if "longrope" not in name])
def test_all_events_are_those_of_the_projects_own_session(folders, name):
    """Of two questions, with the paper's loop; a sliding window that had dropped its old keys would show."""
    ours = open_wim(folders[name], DOCUMENT, [QUERY, OTHER])
    theirs = over_transformers(ours, folders[name])
    found, expected = list(theirs.ask(QUERY)), list(ours.ask(QUERY))
    assert [plainly(event) for event in found] == [plainly(event) for event in expected]
    assert len(found) > 30
    # Without branches a further question has the document read anew, and gets the margins and the answer of ours.
    again, expected = list(theirs.ask(OTHER)), list(ours.ask(OTHER))
    assert sum(isinstance(event, ChunkRead) for event in again) == len(ours.plan.chunks)
    assert [margin.text for margin in again[-1].margins] == [margin.text for margin in expected[-1].margins]
    assert again[-1].answer == expected[-1].answer


@pytest.mark.parametrize("pattern", ["llm", "rag"])
def test_the_other_patterns_too(folders, pattern):
    ours = open_wim(folders["llama"], DOCUMENT, [QUERY, OTHER], pattern=pattern)
    theirs = over_transformers(ours, folders["llama"])
    for query in (QUERY, OTHER):
        assert [plainly(event) for event in theirs.ask(query)] == [plainly(event) for event in ours.ask(query)]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"margins": "underlined"}, "has no `attention`, which underlined margins need; take margins='written'"),
        ({"margins": "both"}, "has no `attention`"),
        ({"margin_window": 3}, "has no `branch`, which margins of 3 chunks together need; take margin_window=1"),
        ({"pack": True}, "has no `prefill_and_probability`, which packed verdicts need; take pack=False"),
    ],
    ids=str,
)
def test_what_a_session_cannot_do_is_said_before_anything_is_read(folders, options, words):
    plan = open_wim(folders["llama"], DOCUMENT, **options).plan
    with pytest.raises(InputError, match=words) as error:
        WiM(plan, TransformersSession(SimpleNamespace()))
    assert str(error.value).startswith("A TransformersSession ")


def test_a_pattern_that_is_asked_for_later_is_refused_at_once(folders):
    wim = open_wim(folders["llama"], DOCUMENT, margins="underlined", pattern="llm")
    over = WiM(wim.plan, TransformersSession(SimpleNamespace()))
    with pytest.raises(InputError, match="has no `attention`"):
        next(over.ask(QUERY, "wim"))
