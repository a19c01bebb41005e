"""Tiny checkpoints that can chat, and runs of the loop over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_variants import PLAIN, VARIANTS, randomise
from safetensors.torch import save_file
from training.folder import write_tokenizer
from weights_helpers import CORPUS, tiny_config, write_checkpoint, write_json

from model import build_model
from model.sampling import Sampler
from model.session import Session
from weights import Checkpoint, sessions
from weights.config import read_model_config
from wim.budget import Plan
from wim.events import AnswerToken, Done, Event, MarginToken
from wim.loop import WiM
from wim.prompt_ids import PromptIds
from wim.prompts import Prompts
from wim.reader import open_document, wanted_sessions
from wim.settings import Settings

READERS = {variant.name: variant for variant in VARIANTS if variant.reader is not None}
SETTINGS = Settings(margins="written", chunk_tokens=60, margin_tokens=10, answer_tokens=9)
QUERY = "Where is Mary?"
# The same for a command line, so that a tiny model reads several chunks of a short document in no time.
SMALL_RUN = ["--chunk-tokens", "60", "--margin-tokens", "8", "--answer-tokens", "7"]
SMALL_RUN += ["--device", "cpu", "--dtype", "float32"]


def document(sentences: int = 24) -> str:
    places = ["garden", "kitchen", "café", "office"]
    text = ""
    for i in range(sentences):
        text += f"Mary went to the {places[i % 4]}. " if i % 3 else f"John picked up item {i}.\n\n"
    return text


def write_reader(folder: Path, name: str, seed: int = 0, **changes: object) -> Path:
    """A whole checkpoint folder whose random weights make attention pick and logits differ."""
    variant = READERS[name]
    kind, options = variant.kind, {"max_position_embeddings": 2048, **variant.reader, **changes}
    if kind == "phi3":
        # With YES and NO in its vocabulary, which weights_helpers' does not tell apart.
        texts = [*CORPUS, *["Reply YES or NO. YES, Yes, yes. NO, No, no."] * 20]
        write_tokenizer(kind, folder, texts, vocab_size=480)
        write_json(folder / "config.json", tiny_config(kind, 480, **options))
    else:
        write_checkpoint(folder, kind, **options)
    model = build_model(read_model_config(json.loads((folder / "config.json").read_text())))
    randomise(model, seed, variant.weights)
    save_file({name: parameter.data for name, parameter in model.named_parameters()}, folder / "model.safetensors")
    return folder


def open_wim(folder: Path | str, text: str, queries: list[str] | None = None, **options: object) -> WiM:
    """A reader in float32 on the CPU. options: those of Settings, and `classifier`, `prompts`."""
    checkpoint = Checkpoint.open(str(folder))
    classifier = options.pop("classifier", "same")
    if classifier == "same":
        classifier = checkpoint
    elif classifier is not None:
        classifier = Checkpoint.open(str(classifier))
    prompts = options.pop("prompts", None)
    settings = Settings(**{**vars(SETTINGS), **options})
    cpu = torch.device("cpu")
    return open_document(
        checkpoint,
        text,
        queries or [QUERY],
        settings,
        prompts=prompts,
        classifier=classifier,
        device=cpu,
        dtype=torch.float32,
    )


def needed_bytes(plan: Plan, checkpoint: Checkpoint, classifier: Checkpoint | None) -> dict[str, int]:
    """In float32."""
    return sessions.needed_bytes(wanted_sessions(plan, checkpoint, classifier), torch.float32)


def ask(wim: WiM, query: str = QUERY, on: Callable[[Event], None] = lambda event: None) -> list[Event]:
    """All events of a question; `on` sees each as it happens."""
    events = []
    for event in wim.ask(query):
        events.append(event)
        on(event)
    assert isinstance(events[-1], Done)
    assert "".join(e.text for e in events if isinstance(e, AnswerToken)).strip() == events[-1].answer
    for margin in (margin for margin in events[-1].margins if margin.score is None):
        assert (
            "".join(e.text for e in events if isinstance(e, MarginToken) and e.chunk == margin.chunk).strip() == margin.text
        )
    return events


def tokens_read(wim: WiM) -> list[list[int]]:
    """What the model reads from now on: token ids, a list for each row of each forward pass."""
    read: list[list[int]] = []
    wim.session.model.register_forward_pre_hook(lambda module, arguments: read.extend(arguments[0].tolist()))
    return read


DOCUMENT = document()
# Its margin prompts differ in length: a chunk of blank lines begins with nothing, emoji take many tokens.
UNEVEN = DOCUMENT + "\n" * 300 + "🙂" * 40
DEMO = "demo-llama"
OTHER = "What did John pick up?"
readers = pytest.mark.parametrize("name", [*READERS, DEMO])
random_readers = pytest.mark.parametrize("name", READERS)
plain_readers = pytest.mark.parametrize("name", [variant.name for variant in PLAIN if variant.name in READERS])


def done(events):
    return events[-1]


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def margin_prompts(wim, query=QUERY):
    return [wim.prompts.margin(query, chunk.beginning) for chunk in wim.plan.chunks]


def region(session, length=None):
    """The cache below a length."""
    return session.cache.storage[:, :, :, : session.length if length is None else length]


def plainly_read(wim, chunks):
    """The header and some chunks in a fresh cache of the same model."""
    session = Session(wim.session.model, wim.plan.capacity)
    session.prefill(wim.prompts.header)
    for chunk in chunks:
        session.prefill(chunk.ids)
    return session


def reply(session, prompt, wim, n_tokens):
    tokens = session.generate(prompt, n_tokens, wim.prompts.stop_ids, Sampler())
    return wim.prompts.tokenizer.decode(list(tokens)).strip()


OPENED = {}


def prompts_of(folder, margin_tokens):
    if folder not in OPENED:
        OPENED[folder] = Checkpoint.open(str(folder))
    return PromptIds(OPENED[folder], Prompts(), margin_tokens)
