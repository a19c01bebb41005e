"""The models are the published ones: logits and greedy tokens equal those of transformers, variant by variant."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from functools import cache as memoize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_variants import (
    LLAMA3,
    LONG,
    LONGROPE,
    NAMES,
    PARTIAL,
    PLAIN,
    QWEN_WINDOW,
    SHORT,
    VARIANTS,
    YARN,
    base_config,
    kinds,
    random_tokens,
    randomise,
    rows,
    variants,
    write_config,
)
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model import InputError, KVCache, build_model, empty_model
from model.rotary import frequencies
from model.sampling import Sampler
from model.session import Session
from weights.config import read_model_config
from weights.families import FAMILIES
from weights.safetensors_loader import load_weights

STEPS = 64


@memoize
def rotary_type(kind):
    """transformers' rotary embedding of a family."""
    with torch.device("meta"):
        plain = next(variant for variant in PLAIN if variant.kind == kind).full_config()
        return type(AutoModelForCausalLM.from_config(AutoConfig.for_model(**plain)).model.rotary_emb)


def load(folder, planned, config=None):
    """Our model from a folder as it was saved, or with another configuration."""
    config = config or json.loads((folder / "config.json").read_text())
    model = empty_model(read_model_config(config), torch.float32).allocate("cpu")
    load_weights(model, folder)
    model.set_max_length(planned)
    return model.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder that transformers saves for a variant, and transformers' model of it; made once for all tests."""
    made = {}

    def get(variant):
        if variant.name not in made:
            folder = tmp_path_factory.mktemp(variant.name)
            write_config(folder, variant.full_config())
            oracle = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager")
            randomise(oracle, weights=variant.weights)
            oracle.save_pretrained(folder)
            made[variant.name] = folder, oracle.eval()
        return made[variant.name]

    return get


@torch.no_grad()
def oracle_logits(oracle, token_ids):
    return oracle(torch.tensor([token_ids])).logits[0]


@torch.no_grad()
def our_logits(model, token_ids):
    return model(torch.tensor([token_ids]), all_logits=True)[0]


@variants()
def test_logits_and_greedy_tokens_equal_those_of_transformers(published, variant):
    folder, oracle = published(variant)
    tokens = random_tokens(variant.prompt)
    model = load(folder, planned=len(tokens) + STEPS)

    theirs = oracle_logits(oracle, tokens)
    deviation = theirs.std().item()
    assert 1 < deviation < 10, (  # or the tolerance would mean nothing
        f"transformers' own logits deviate by {deviation:.2g}, so the row would show nothing: choose milder numbers or "
        "other weights="
    )
    assert (our_logits(model, tokens) - theirs).abs().max() < 1e-4

    session = Session(model, len(tokens) + STEPS)
    continued = list(session.generate(tokens, STEPS, frozenset(), Sampler()))
    with torch.no_grad():
        expected = oracle.generate(
            torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens)), do_sample=False, max_new_tokens=STEPS
        )
    assert continued == expected[0, len(tokens) :].tolist()
    # And of the whole text, which lies beyond all original lengths.
    whole = tokens + continued
    assert (our_logits(model, whole) - oracle_logits(oracle, whole)).abs().max() < 1e-4


@variants()
def test_chunks_give_the_logits_of_transformers_too(published, variant):
    folder, oracle = published(variant)
    tokens = random_tokens(variant.prompt)
    model, cache = load(folder, planned=len(tokens)), KVCache(read_model_config(variant.full_config()), len(tokens))
    pieces, at = [], 0
    for size in (9, 1, 2, 14, len(tokens)):  # borders before, inside and after the sliding windows
        with torch.no_grad():
            pieces.append(model(torch.tensor([tokens[at : at + size]]), cache, all_logits=True)[0])
        at = min(at + size, len(tokens))
    assert cache.length == len(tokens)
    assert (torch.cat(pieces) - oracle_logits(oracle, tokens)).abs().max() < 1e-4


@rows([variant for variant in VARIANTS if variant.without])
def test_the_option_shows_in_the_logits(published, variant):
    """Or the equalities above would hold without it."""
    folder, _ = published(variant)
    tokens = random_tokens(variant.prompt)
    model = load(folder, len(tokens))
    without = load(folder, len(tokens), variant.full_config(**variant.without))
    change = (our_logits(model, tokens) - our_logits(without, tokens)).abs().max().item()
    assert change > 1e-2, f"without={variant.without} changes our logits by {change:.2g} only"


def comparable(config):
    """A configuration without the dtype: files say that of their own weights."""
    return {name: value for name, value in vars(read_model_config(config)).items() if name != "dtype"}


@variants()
def test_what_transformers_writes_means_what_was_published(published, variant):
    """transformers 5 writes `rope_parameters`; the published files have `rope_scaling` and `rope_theta`."""
    folder, _ = published(variant)
    written = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in written and "rope_scaling" not in written
    assert comparable(written) == comparable(variant.full_config())


def spelt(scaling, spelling, theta=5000.0):
    """The keys of config.json that give a rotary embedding, in one of the spellings in the wild."""
    scaling = dict(scaling)
    rope_type = scaling.pop("rope_type", None) or scaling.pop("type")
    if spelling == "rope_parameters":
        return {"rope_parameters": {**scaling, "rope_type": rope_type, "rope_theta": theta}, "rope_theta": None}
    names = {"type": {"type": rope_type}, "rope_type": {"rope_type": rope_type}}
    names["both"] = names["type"] | names["rope_type"]
    return {"rope_scaling": {**names[spelling], **scaling}, "rope_theta": theta}


@pytest.mark.parametrize("spelling", ["rope_type", "both", "rope_parameters"])
@pytest.mark.parametrize(
    "kind, scaling, rope_type",
    [
        ("llama", {"type": "linear", "factor": 2.0}, "linear"),
        ("llama", LLAMA3, "llama3"),
        ("qwen2", YARN, "yarn"),
        ("phi3", LONGROPE, "longrope"),
        ("phi3", LONGROPE | {"type": "su"}, "longrope"),
        ("phi3", LONGROPE | {"type": "yarn"}, "longrope"),
    ],
)
def test_all_spellings_of_a_rotary_embedding_are_one(kind, scaling, rope_type, spelling):
    config = base_config(kind)
    expected = read_model_config(config | spelt(scaling, "type"))
    assert (expected.rope.rope_type, expected.rope.theta) == (rope_type, 5000.0)
    assert read_model_config(config | spelt(scaling, spelling)) == expected


@pytest.mark.parametrize("top", [None, 128, 64])
@pytest.mark.parametrize("inner", [None, 128, 64])
@pytest.mark.parametrize("kind, scaling", [("phi3", LONGROPE), ("llama", LLAMA3), ("qwen2", YARN)])
def test_the_original_length_stands_in_two_places(tmp_path, kind, scaling, inner, top):
    key = "original_max_position_embeddings"
    config = base_config(kind) | {"rope_scaling": {**scaling, key: inner} if inner else {**scaling}}
    if inner is None:
        config["rope_scaling"].pop(key, None)
    if top:
        config[key] = top
    write_config(tmp_path, config)
    oracle = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).config  # settled as the model is built
    found = read_model_config(config).rope.original_max_position_embeddings
    assert found == oracle.rope_parameters[key]


@pytest.mark.parametrize("place", ["top", "scaling"])
def test_the_partial_factor_stands_in_two_places(place):
    partial = {"partial_rotary_factor": 0.75}
    config = base_config("phi3") | {"rope_scaling": PARTIAL | (partial if place == "scaling" else {})}
    assert read_model_config(config | (partial if place == "top" else {})).rope.rotary_dim == 12


@pytest.mark.parametrize("length, factors", [(128, SHORT), (129, LONG)])
def test_longrope_chooses_its_factors_once_for_the_max_length(length, factors):
    config = base_config("phi3") | {"rope_scaling": LONGROPE, "original_max_position_embeddings": 128}
    model = build_model(read_model_config(config))
    model.set_max_length(length)
    expected = 1 / (torch.tensor(factors) * 10000.0 ** (torch.arange(0, 16, 2) / 16))
    assert torch.equal(model.model.rotary.inv_freq, expected)  # in the order of transformers, to the last bit


def test_what_a_config_leaves_out_has_the_published_default():
    config = base_config("llama")
    for key in ("num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "hidden_act"):
        del config[key]
    read = read_model_config(config)
    assert (read.num_key_value_heads, read.head_dim, read.rope.theta, read.rms_norm_eps) == (4, 16, 10000.0, 1e-6)
    assert not read.tie_word_embeddings
    assert read_model_config(config | {"hidden_act": "swish"}) == read  # another name of silu
    del config["architectures"]
    assert read_model_config(config) == read
    listed = base_config("mistral") | {"layer_types": ["full_attention"] * 2}
    assert read_model_config(listed | {"architectures": None, "model_type": "ministral"}) == read_model_config(listed)
    windowed = base_config("qwen2") | {"use_sliding_window": True, "max_window_layers": 0, "max_position_embeddings": 8192}
    assert read_model_config(windowed).sliding_windows == (AutoConfig.for_model(**windowed).sliding_window,) * 2


def theirs_of(config):
    """transformers' configuration object of a config.json, as its AutoConfig chooses it."""
    kind = "ministral" if config["model_type"] == "mistral" and "layer_types" in config else config["model_type"]
    return type(AutoConfig.for_model(kind)).from_dict(copy.deepcopy(config))


def same(key, ours, theirs):
    assert ours == theirs, f"{key} is {ours!r} for us and {theirs!r} for transformers"


def assert_means_the_same(config):
    """Our reading of a config.json gives the sizes, windows and rotary frequencies of transformers' own."""
    ours, theirs = read_model_config(config), theirs_of(config)
    for key in (*SIZES, "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"):
        same(key, getattr(ours, key), getattr(theirs, key))
    heads_share = theirs.hidden_size // theirs.num_attention_heads
    same("head_dim", ours.head_dim, getattr(theirs, "head_dim", None) or heads_share)
    family = FAMILIES[config["model_type"]]
    for key in (*family.biases, *family.own, *family.optional):
        same(key, ours.own.get(key, getattr(ours, key, None)), getattr(theirs, key))

    known = vars(type(theirs)())  # transformers keeps what it does not know
    window = theirs.sliding_window if "sliding_window" in known else None
    listed = theirs.layer_types if "layer_types" in known else ["sliding_attention"] * ours.num_hidden_layers
    windows = [window if layer == "sliding_attention" else None for layer in listed]
    # A window as long as the context hides nothing.
    windows = [window if (window or 10**9) < ours.context_length else None for window in windows]
    same("sliding_windows", list(ours.sliding_windows), windows)

    embedding = rotary_type(config["model_type"])(theirs)
    for length in (1, ours.rope.original_max_position_embeddings + 1):
        found, scale = frequencies(ours.rope, length)
        expected, expected_scale = embedding.inv_freq, embedding.attention_scaling
        if theirs.rope_parameters["rope_type"] == "longrope":
            expected, expected_scale = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", seq_len=length)
        same("the rotary embedding's scale", scale, pytest.approx(expected_scale, rel=1e-6))
        # Llama 3's ramp between two factors that are nearly equal loses digits, in each order of computing it others.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@kinds
def test_what_an_almost_empty_config_leaves_out_has_the_default_of_transformers(kind):
    assert_means_the_same({"model_type": kind})
    ours, theirs = read_model_config({"model_type": kind}), AutoConfig.for_model(kind)
    key = FAMILIES[kind].activation_key
    same(key, FAMILIES[kind].activations[0], getattr(theirs, key))
    assert ours == read_model_config({"architectures": [NAMES[kind]]})
    if FAMILIES[kind].window_switch:
        assert_means_the_same({"model_type": kind, "use_sliding_window": True})
        assert read_model_config({"model_type": kind, "use_sliding_window": True}).sliding_windows[27:29] == (None, 4096)


class Asked(dict):
    """A config.json that remembers which of its keys were asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.keys_asked = set()

    def get(self, key, default=None):
        self.keys_asked.add(key)
        return super().get(key, default)


# Of training, of text, and of other ways to compute the same.
HARMLESS = re.compile(r".*(dropout|pdrop|_token_id)|initializer_range|chunk_size_feed_forward|pretraining_tp")


@kinds
def test_every_number_of_the_configuration_of_transformers_is_read(kind):
    config, theirs = Asked({"model_type": kind, "use_sliding_window": True}), AutoConfig.for_model(kind)
    read_model_config(config)
    numbers = [key for key, value in vars(theirs).items() if type(value) in (int, float) and not HARMLESS.fullmatch(key)]
    unread = ", ".join(key for key in numbers if key not in config.keys_asked)
    assert not unread, f"{type(theirs).__name__} has {unread}, which weights/families.py does not read"


@kinds
def test_rows_show_that_every_number_of_its_own_counts(kind):
    """One by one: a number that is switched off with another may be the one that does nothing."""
    changes = [list(variant.without or ()) for variant in VARIANTS if variant.kind == kind]
    missing = ", ".join(key for key in (*FAMILIES[kind].own, *FAMILIES[kind].optional) if [key] not in changes)
    assert not missing, f"no row shows that {missing} counts: each needs a row whose without= changes it alone"


FACTORS = st.floats(0.25, 64) | st.integers(1, 40)
ORIGINALS = st.integers(2, 600)
# What each rotary embedding may say, with values that make sense and values that hardly do.
SCALINGS = {
    "default": {"rope_theta": st.floats(2, 1e7)},
    "linear": {"factor": FACTORS},
    "llama3": dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), FACTORS)
    | {"original_max_position_embeddings": ORIGINALS},
    "yarn": {"factor": FACTORS},
    "longrope": {"short_factor": st.just(SHORT), "long_factor": st.just(LONG)},
}
OPTIONAL = {
    "llama3": {"rope_theta": st.floats(2, 1e7)},
    "yarn": dict.fromkeys(("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"), FACTORS)
    | {"original_max_position_embeddings": ORIGINALS, "truncate": st.booleans()},
    "longrope": {"factor": FACTORS, "attention_factor": FACTORS, "original_max_position_embeddings": ORIGINALS},
}
OPTIONS = {
    "rope_theta": st.floats(2, 1e7),
    "original_max_position_embeddings": ORIGINALS,
    "sliding_window": st.sampled_from([None, 1, 16, 511, 512, 4096]),
    "use_sliding_window": st.booleans(),
    "max_window_layers": st.integers(-1, 3),
    "layer_types": st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=2, max_size=2),
    "head_dim": st.sampled_from([None, 16]),
    "num_key_value_heads": st.sampled_from([None, 1, 2, 4]),
    "tie_word_embeddings": st.booleans(),
    "attention_bias": st.booleans(),
    "rms_norm_eps": st.floats(1e-8, 1e-2),
    "max_position_embeddings": ORIGINALS,
    "partial_rotary_factor": st.just(1.0),
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
ODD = st.sampled_from([None, 0, 0.0, -1, 3, 10**30, float("nan"), float("inf"), True, "4", "", [], {}, [2], {"a": {}}])


@st.composite
def configs(draw, kind):
    """Changes to a configuration: a rotary embedding and some options, and in half of them one odd value somewhere."""
    rope_type = draw(st.sampled_from(list(SCALINGS)))
    scaling = draw(st.fixed_dictionaries(SCALINGS[rope_type], optional=OPTIONAL.get(rope_type, {})))
    scaling[draw(st.sampled_from(["type", "rope_type"]))] = rope_type
    changes = draw(st.fixed_dictionaries({}, optional=OPTIONS))
    spelling = draw(st.sampled_from(["rope_scaling", "rope_parameters"]))
    changes[spelling] = scaling
    if draw(st.booleans()):
        odd = draw(ODD)
        inside = draw(st.booleans())
        place = draw(st.sampled_from([*scaling] if inside else [*OPTIONS, *SIZES, "rope_scaling", "rope_parameters"]))
        (scaling if inside else changes)[place] = odd
    return base_config(kind) | changes


@kinds
@given(data=st.data())
@settings(max_examples=100)
def test_a_mutated_config_is_refused_or_means_what_it_means_to_transformers(kind, data):
    config = data.draw(configs(kind))
    try:
        read_model_config(config)
    except InputError as error:
        assert len(str(error)) < 600 and "\n" not in str(error)
        return
    try:
        rotary_type(kind)(theirs_of(config))
    except Exception:  # which transformers refuses, or stumbles over: no reading to compare with
        return
    assert_means_the_same(config)


@pytest.mark.parametrize(
    "kind, changes, length",
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 512),  # the stretched maximum is written
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_sequence_length": 2048}, 2048),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_sequence_length": 256}, 512),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "max_sequence_length": 2048}, 512),
        ("llama", {"max_sequence_length": 2048}, 512),
        ("qwen2", {"rope_scaling": YARN | {"original_max_position_embeddings": 512}}, 2048),
        ("qwen2", {"rope_scaling": YARN}, 512),
        ("qwen2", {"dual_chunk_attention_config": {"original_max_position_embeddings": 256, "chunk_size": 300}}, 256),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 300}}, 300),
        ("qwen2", {"dual_chunk_attention_config": {}}, 512),
    ],
)
def test_how_many_positions_a_model_is_made_for(kind, changes, length):
    assert read_model_config(base_config(kind) | changes).context_length == length


@pytest.mark.parametrize("said, length", [(None, 512), (2048, 2048), (1000, 1000), (100, 512), (10**30, 512), (1e30, 512)])
def test_linear_scaling_may_be_told_by_the_tokenizer(said, length):
    config = base_config("llama") | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert read_model_config(config, said).context_length == length


@pytest.mark.parametrize(
    "kind, changes, words",
    [
        ("llama", {"architectures": ["OlmoForCausalLM"]}, ["'OlmoForCausalLM'", *NAMES.values()]),
        ("llama", {"architectures": [], "model_type": "gpt2"}, ["'gpt2'", *NAMES]),
        ("llama", {"architectures": None, "model_type": None}, ["not supported", *NAMES]),
        ("llama", {"architectures": "LlamaForCausalLM"}, ["architectures = 'LlamaForCausalLM'", "list"]),
        ("llama", {"model_type": "mistral"}, ["'LlamaForCausalLM'", "'mistral'", "do not agree"]),
        ("llama", {"model_type": "ministral"}, ["'LlamaForCausalLM'", "'ministral'", "do not agree"]),
        ("llama", {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}, ["'SmolLM3ForCausalLM'", *NAMES]),
        ("llama", {"model_type": ["llama"]}, ["'LlamaForCausalLM'", "['llama']", "do not agree"]),
        ("llama", {"tie_word_embeddings": "false"}, ["tie_word_embeddings = 'false'"]),
        ("llama", {"hidden_act": "gelu"}, ["hidden_act 'gelu'", "'silu'"]),
        ("llama", {"architectures": [["LlamaForCausalLM"]]}, ["not supported"]),
        ("llama", {"rms_norm_eps": float("nan")}, ["rms_norm_eps = nan"]),
        ("llama", {"rope_theta": float("inf")}, ["rope_theta = inf"]),
        ("llama", {"vocab_size": 10**30}, ["vocab_size = 1000"]),
        ("llama", {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, ["['linear']", "not supported"]),
        ("llama", {"hidden_size": None}, ["hidden_size = None"]),
        ("llama", {"num_hidden_layers": -2}, ["num_hidden_layers = -2"]),
        ("llama", {"num_hidden_layers": 2.5}, ["num_hidden_layers = 2.5", "whole number"]),
        ("llama", {"vocab_size": "many"}, ["vocab_size = 'many'"]),
        ("llama", {"max_position_embeddings": True}, ["max_position_embeddings = True"]),
        ("llama", {"num_key_value_heads": 3}, ["num_attention_heads = 4", "num_key_value_heads = 3", "multiple"]),
        ("llama", {"rope_theta": "big"}, ["rope_theta = 'big'"]),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2}}, ["'dynamic'", "llama3", "longrope"]),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["'llama3'", "low_freq_factor"]),
        ("llama", {"rope_scaling": {"type": "linear"}}, ["'linear'", "factor"]),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "two"}}, ["factor = 'two'"]),
        ("llama", {"rope_scaling": "linear"}, ["rope_scaling"]),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters", "all layers"]),
        ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor = 0.5", "LlamaForCausalLM"]),
        ("qwen2", {"rope_scaling": YARN, "rope_theta": 1}, ["rope_theta = 1", "above 1"]),
        ("qwen2", {"rope_scaling": YARN | {"beta_fast": "x"}}, ["beta_fast = 'x'"]),
        ("qwen2", {"rope_scaling": YARN | {"attention_factor": "x"}}, ["attention_factor = 'x'"]),
        ("qwen2", QWEN_WINDOW | {"layer_types": ["chunked_attention"] * 3}, ["'chunked_attention'", "sliding_attention"]),
        ("qwen2", QWEN_WINDOW | {"max_window_layers": None}, ["max_window_layers = None"]),
        ("qwen2", QWEN_WINDOW | {"max_window_layers": True}, ["max_window_layers = True"]),
        ("qwen2", QWEN_WINDOW | {"use_sliding_window": "false"}, ["use_sliding_window = 'false'"]),
        ("qwen2", QWEN_WINDOW | {"layer_types": 5}, ["5 layer_types", "3 layers"]),
        ("phi3", {"rope_scaling": LONGROPE | {"factor": "x"}}, ["factor = 'x'"]),
        ("phi3", {"rope_scaling": LONGROPE | {"short_factor": ["x"] * 8}}, ["short_factor = 'x'"]),
        ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 1}, ["original length of 1"]),
        ("qwen2", {"rope_scaling": {"type": "yarn"}}, ["'yarn'", "factor"]),
        ("qwen2", {"use_sliding_window": True, "sliding_window": "wide"}, ["sliding_window = 'wide'"]),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 0}, ["sliding_window = 0"]),
        ("qwen2", QWEN_WINDOW | {"layer_types": ["full_attention"]}, ["1 layer_types", "3 layers"]),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": SHORT}}, ["'longrope'", "long_factor"]),
        ("phi3", {"rope_scaling": PARTIAL}, ["short_factor has 6 numbers", "16 needs 8"]),
        ("phi3", {"rope_scaling": LONGROPE | {"long_factor": 2.0}}, ["long_factor"]),
        ("phi3", {"partial_rotary_factor": 2.0}, ["partial_rotary_factor = 2.0"]),
        ("phi3", {"partial_rotary_factor": 0.0}, ["partial_rotary_factor = 0.0"]),
        (
            "phi3",
            {"rope_scaling": LONGROPE, "original_max_position_embeddings": 0},
            ["original_max_position_embeddings = 0"],
        ),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ["'linear'", "longrope"]),
        (
            "qwen2",
            {"rope_scaling": YARN | {"original_max_position_embeddings": 0}},
            ["original_max_position_embeddings = 0"],
        ),
        (
            "qwen2",
            {"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 32}},
            ["beta_slow = 32", "beta_fast = 1", "swapped"],
        ),
        ("qwen2", {"rope_scaling": YARN | {"beta_slow": 40}}, ["beta_slow = 40", "beta_fast = 32", "swapped"]),
        (
            "llama",
            {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            ["low_freq_factor = 4.0", "high_freq_factor = 1.0", "swapped"],
        ),
        ("llama", {"rope_theta": 0}, ["rope_theta = 0"]),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 0.0}}, ["rope_theta = 0.0"]),
        ("llama", {"rope_scaling": {"rope_type": "", "factor": 2.0}}, ["''", "not supported"]),
        ("llama", {"rope_parameters": []}, ["rope_parameters = []"]),
        ("llama", {"head_dim": 0}, ["head_dim = 0"]),
        ("llama", {"num_key_value_heads": 0}, ["num_key_value_heads = 0"]),
        ("llama", {"architectures": "", "model_type": "llama"}, ["architectures = ''", "list"]),
        ("qwen2", QWEN_WINDOW | {"layer_types": []}, ["0 layer_types", "3 layers"]),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, ["'sliding_attention'", "sliding_window"]),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 0}}, ["dual_chunk_attention_config = 0"]),
        ("llama", {"num_hidden_layers": 10**5}, ["num_hidden_layers = 100000", "at most 1,000"]),
        ("llama", {"head_dim": 10**12}, ["head_dim = 1000000000000", "at most 10,000"]),
    ],
)
def test_an_unusable_configuration_gets_a_sentence(kind, changes, words):
    with pytest.raises(InputError) as error:
        read_model_config(base_config(kind) | changes)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("given", [{}, {"depth": 3, "cap": None}, {"depth": 3, "cap": 2.5}])
def test_a_family_may_have_numbers_of_its_own(monkeypatch, given):
    odd = replace(FAMILIES["llama"], own={"depth": 7}, optional={"cap": 50.0})
    monkeypatch.setitem(FAMILIES, "llama", odd)
    assert read_model_config(base_config("llama") | given).own == {"depth": 7, "cap": 50.0} | given
    for bad in ({"depth": None}, {"depth": "deep"}, {"cap": -1}):
        with pytest.raises(InputError, match="should be a positive number"):
            read_model_config(base_config("llama") | bad)
