"""weights/safetensors_loader.py and weights/checkpoint.py: a folder becomes a model, or a sentence."""

from __future__ import annotations

import json
import os
import shutil
import time
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from cli.weights_bar import WeightsBar
from model_variants import kinds
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from weights_helpers import random_weights, tiny_config, write_checkpoint, write_json

from model import empty_model
from model.errors import InputError
from weights import Checkpoint, safetensors_loader
from weights.config import read_model_config
from weights.safetensors_loader import load_weights

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def shard(folder):
    """Cut model.safetensors in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@kinds
def test_a_checkpoint_gives_the_logits_of_transformers(tmp_path, kind, tied, sharded):
    folder = write_checkpoint(tmp_path, kind, tie_word_embeddings=tied)
    if sharded:
        shard(folder)
    model = Checkpoint.open(str(folder)).load_model("cpu", torch.float32, max_length=64)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits, expected = model(IDS, all_logits=True), oracle(IDS).logits
    assert (logits - expected).abs().max() < 1e-4
    assert not model.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_in_the_wanted_dtype(tmp_path, dtype):
    checkpoint = Checkpoint.open(str(write_checkpoint(tmp_path, "qwen2", tie_word_embeddings=True)))
    model = checkpoint.load_model("cpu", dtype, max_length=64)
    parameters = list(model.parameters())
    assert {parameter.dtype for parameter in parameters} == {dtype}
    assert checkpoint.weight_bytes(dtype) == sum(parameter.nbytes for parameter in parameters)
    stored = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.model.norm.weight, stored.to(dtype))


@pytest.mark.parametrize("present", ["model.embed_tokens.weight", "lm_head.weight", "both"])
def test_of_tied_tensors_one_is_enough(tmp_path, present):
    folder = write_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if present == "lm_head.weight":
            del tensors["model.embed_tokens.weight"]

    rewrite(folder, change)
    model = Checkpoint.open(str(folder)).load_model("cpu", torch.float32, max_length=64)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, embedding)


@kinds
def test_what_is_stored_with_different_values_is_not_tied(tmp_path, kind):
    """Whatever config.json says: a fine-tuned head with the flag of its base model. As transformers 5 has it."""
    folder = write_checkpoint(tmp_path, kind, tie_word_embeddings=True)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].flip(0)}))
    model = Checkpoint.open(str(folder)).load_model("cpu", torch.float32, max_length=64)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        assert (model(IDS, all_logits=True) - oracle(IDS).logits).abs().max() < 1e-4

    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.ones(3, 32)}))
    with pytest.raises(InputError, match="lm_head.weight .the file has .3, 32."):
        Checkpoint.open(str(folder)).load_model("cpu", torch.float32, max_length=64)


def test_old_checkpoints_may_store_rotary_frequencies(tmp_path):
    folder = write_checkpoint(tmp_path, "llama")
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    Checkpoint.open(str(folder)).load_model("cpu", torch.float32, max_length=64)


def test_the_loaded_model_does_not_hang_on_the_file(tmp_path):
    folder = write_checkpoint(tmp_path, "llama")
    model = Checkpoint.open(str(folder)).load_model("cpu", torch.float32, max_length=64)
    before = model.model.norm.weight.clone()
    with (folder / "model.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(b"\0" * (size - size // 2))
    assert torch.equal(model.model.norm.weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_read_in_pieces_through_few_buffers(tmp_path, monkeypatch, dtype):
    """Whatever the sizes: tensors of many pieces, a last piece that is not full, and no buffer larger than a piece."""
    monkeypatch.setattr(safetensors_loader, "PIECE", 40)
    folder = write_checkpoint(tmp_path, "llama")
    model = empty_model(read_model_config(json.loads((folder / "config.json").read_text())), dtype).allocate("cpu")
    buffers, empty = [], torch.empty

    def counted(*args, **kwargs):
        if kwargs["dtype"] == torch.uint8:
            buffers.append(args[0])
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", counted)
    load_weights(model, folder)
    assert all(size == 40 for size in buffers) and len(buffers) <= safetensors_loader.READERS
    assert bool(buffers) == (dtype != torch.float32)  # the file's own dtype is read to where it belongs
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(parameter, stored[name].to(dtype)) for name, parameter in model.named_parameters())


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_layers_are_made_one_matrix_at_a_time(tmp_path, monkeypatch, kind, dtype):
    """So the float matrices never stand in memory together; and biases, norms, embedding and head are as they were."""
    sizes = {"tie_word_embeddings": kind == "qwen2", "attention_bias": kind == "llama"}
    checkpoint = Checkpoint.open(str(write_checkpoint(tmp_path, kind, **sizes)))
    seen, most, read = [], [], safetensors_loader.Pieces.read

    def remembered(pieces, stored, place, cut=None):
        seen.append(weakref.ref(place))
        read(pieces, stored, place, cut)

    def count(read, total):
        alive = [ref() for ref in seen if ref() is not None]
        most.append(sum(value.nbytes for value in alive if value.dim() == 2))

    monkeypatch.setattr(safetensors_loader.Pieces, "read", remembered)
    model = checkpoint.load_model("cpu", dtype, max_length=64, progress=count, weights="int8")
    exact = checkpoint.load_model("cpu", dtype, max_length=64)
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    assert n_bytes == checkpoint.weight_bytes(dtype, "int8") < checkpoint.weight_bytes(dtype)
    outside = [exact.model.embed_tokens.weight, exact.lm_head.weight]
    largest = max(weight.nbytes for weight in exact.model.layers.parameters())
    assert max(most) <= sum({id(weight): weight.nbytes for weight in outside}.values()) + largest
    expected = dict(exact.named_parameters(remove_duplicate=False))
    unrounded = dict(checkpoint.load_model("cpu", torch.float32, max_length=64).named_parameters())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.dtype == torch.int8:
            scale = model.get_parameter(name.removesuffix("weight") + "scale")[:, None]
            assert expected.pop(name).shape == parameter.shape
            assert ((parameter * scale - unrounded[name]).abs() <= 0.501 * scale).all()
        elif not name.endswith(".scale"):
            assert torch.equal(parameter, expected.pop(name))
    assert not expected and (model.lm_head.weight is model.model.embed_tokens.weight) == (kind == "qwen2")
    with torch.no_grad():
        difference = model(IDS, all_logits=True) - exact(IDS, all_logits=True)
        assert 0 < difference.abs().mean() < 0.05 * exact(IDS, all_logits=True).std()


def test_other_numbers_than_int8_are_refused_before_weights_are_read(tmp_path):
    checkpoint = Checkpoint.open(str(write_checkpoint(tmp_path, "llama")))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    for work in (partial(checkpoint.weight_bytes, torch.float32), partial(checkpoint.load_model, "cpu", torch.float32, 64)):
        with pytest.raises(InputError, match="weights is 'int3'; choose one of: float, int8"):
            work(weights="int3")


def test_a_file_that_shrinks_while_it_is_read_gets_a_sentence(tmp_path):
    folder = write_checkpoint(tmp_path, "llama")
    checkpoint = Checkpoint.open(str(folder))

    def shrink(read, total):
        os.truncate(folder / "model.safetensors", 20_000)

    with pytest.raises(InputError, match="model.safetensors has become shorter while it was read"):
        checkpoint.load_model("cpu", torch.float32, max_length=64, progress=shrink)


def test_progress_is_told_to_whoever_asks(tmp_path, capsys):
    told = []
    checkpoint = Checkpoint.open(str(write_checkpoint(tmp_path, "llama")))
    checkpoint.load_model("cpu", torch.float32, max_length=64, progress=lambda *bytes_: told.append(bytes_))
    total = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    assert told[0] == (0, total) and told[-1] == (total, total)
    assert told == sorted(told) and len(told) > 2
    bar = WeightsBar()
    for read_and_total in told:
        bar(*read_and_total)
    out, err = capsys.readouterr()
    assert out == "" and "weights: 100%" in err


# Bad weights


def _index(folder, weight_map):
    shard(folder)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def _truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _absent_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _no_index(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()


def _link_nowhere(file):
    """As a snapshot of the hub's cache that was copied without its blobs."""
    file.unlink()
    file.symlink_to("../../blobs/0123abc")


def _dangling(folder):
    _link_nowhere(folder / "model.safetensors")


def _dangling_shard(folder):
    shard(folder)
    _link_nowhere(folder / "model-00002-of-00002.safetensors")


def _rename_to(name):
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def _overwrite(content):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def _tensors(change):
    return lambda folder: rewrite(folder, change)


def _drop_norms(tensors):
    for name in [name for name in tensors if "norm" in name] + ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]:
        del tensors[name]


def _gptq(tensors):
    for i in (0, 1):
        del tensors[f"model.layers.{i}.self_attn.q_proj.weight"]
        for part in ("qweight", "qzeros", "g_idx"):
            tensors[f"model.layers.{i}.self_attn.q_proj.{part}"] = torch.ones(4, 4, dtype=torch.int32)


def _fp8(tensors):
    for name in [name for name in tensors if "self_attn.q_proj" in name or "up_proj" in name]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        if "up_proj" in name:
            tensors[name + "_scale_inv"] = torch.ones(1, 1)


def _pipe(name):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def _folder(name):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_tensors(lambda t: t.pop("model.norm.weight")), "missing tensors: model.norm.weight. Download"),
        (_tensors(_drop_norms), r"missing tensors: (\S+, ){3}\.\.\. and 4 more"),
        (_tensors(lambda t: t.update({"model.extra": torch.ones(1)})), "unexpected tensors: model.extra"),
        (
            _tensors(lambda t: t.update({"model.norm.weight": torch.ones(33)})),
            r"another shape: model.norm.weight \(the file has \[33\], config.json asks for \[32\]\)",
        ),
        (
            _tensors(lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
            r"quantised, or no floating-point numbers \(model.norm.weight \(I8\)\), and only float weights",
        ),
        (_tensors(_gptq), r"quantised, .*\(model.layers.0.self_attn.q_proj.g_idx, .* and 4 more\), and only"),
        (_tensors(_fp8), r"quantised, .*\(model\S+weight_scale_inv, model\S+weight_scale_inv, ... and 4 more\), and only"),
        (_truncate, "model.safetensors is cut short or damaged"),
        (_overwrite(b""), "model.safetensors is cut short or damaged"),
        (_overwrite(b"PK\3\4" * 99), "model.safetensors is cut short or damaged"),
        (_overwrite(POINTER), "only a Git LFS pointer"),
        (_absent_shard, "index.json names 'model-00002-of-00002.safetensors', which is not in the folder"),
        (lambda folder: _index(folder, {"a": "../secret.safetensors"}), "'../secret.safetensors', which is not a"),
        (lambda folder: _index(folder, {"a": "weights.bin"}), "'weights.bin', which is not a .safetensors file"),
        (lambda folder: _index(folder, {"a": "x" * 5000 + ".safetensors"}), "names 'xxx.*, which is not in the folder"),
        (lambda folder: _index(folder, {"a": "\ud800\n.safetensors"}), "names .*, which is not in the folder"),
        (lambda folder: _index(folder, {"a": 1}), "has no 'weight_map'"),
        (lambda folder: _index(folder, {}), "has no 'weight_map'"),
        (_rename_to("pytorch_model.bin"), "holds weights as pytorch_model.bin, a pickle, which can run code"),
        (_rename_to("consolidated.00.pth"), "a pickle, which can run code"),
        (_rename_to("other.safetensors"), "has other.safetensors but no model.safetensors"),
        (_rename_to("adapter_model.safetensors"), "holds an adapter and no weights of a model; merge it"),
        (_rename_to("consolidated.safetensors"), "consolidated.safetensors, weights under the names of their authors"),
        (_rename_to("model.pth"), "model.pth, a pickle"),
        (_rename_to("model-Q4_K_M.gguf"), "weights as model-Q4_K_M.gguf, which is not read here"),
        (_no_index, "has the shards .* but no model.safetensors.index.json, which says what is in them"),
        (_pipe("model.safetensors"), "model.safetensors is no file"),
        (_folder("model.safetensors"), "model.safetensors is no file"),
        (_dangling, "is a link to ../../blobs/0123abc, which is not there; copy what the links"),
        (_dangling_shard, "model-00002-of-00002.safetensors is a link to ../../blobs/0123abc, which is not there"),
        (_rename_to("nothing"), "has no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_bad_weights_get_a_sentence(tmp_path, damage, sentence):
    folder = write_checkpoint(tmp_path, "llama")
    damage(folder)
    checkpoint = Checkpoint.open(str(folder))  # the small files are right
    with pytest.raises(InputError, match=sentence) as caught:
        checkpoint.load_model("cpu", torch.float32, max_length=64)
    assert "\n" not in str(caught.value)


# Bad small files, found before any weights are


def _configure(changes, folder):
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | changes)


def _only_gguf(folder):
    (folder / "config.json").rename(folder / "model-Q4_K_M.gguf")


def _only_adapter(folder):
    (folder / "config.json").unlink()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "owner/base"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json, so it is no checkpoint folder"),
        (lambda folder: (folder / "config.json").write_text("{,"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0"), "config.json is not UTF-8"),
        (lambda folder: write_json(folder / "config.json", [1]), "should hold a JSON object but holds a list"),
        (
            lambda folder: write_json(folder / "config.json", {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}),
            "'GPT2LMHeadModel' is not supported.*LlamaForCausalLM.*Phi3ForCausalLM.*Qwen2ForCausalLM.*MistralForCausalLM",
        ),
        (
            lambda folder: write_json(folder / "config.json", tiny_config("llama", 100)),
            "gives ids up to .* vocab_size = 100",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "neither tokenizer.json nor tokenizer.model"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("nonsense"), "tokenizer_config.json is not JSON"),
        (
            lambda folder: (folder / "generation_config.json").write_text("nonsense"),
            "generation_config.json is not JSON",
        ),
        (lambda folder: write_json(folder / "tokenizer_config.json", {}), "has no chat template"),
        (lambda folder: _link_nowhere(folder / "config.json"), "config.json is a link to .*, which is not there"),
        (lambda folder: _link_nowhere(folder / "tokenizer_config.json"), "tokenizer_config.json is a link to"),
        *(
            (_pipe(name), f"{name} is no file")
            for name in ("config.json", "tokenizer.json", "chat_template.jinja", "wim.json")
        ),
        *((_folder(name), f"{name} is no file") for name in ("generation_config.json", "special_tokens_map.json")),
        *(
            (lambda folder, name=name: (folder / name).write_bytes(POINTER), f"{name} is only a Git LFS pointer; fetch")
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        ),
        (_only_gguf, "holds model-Q4_K_M.gguf, which is not read here; take the checkpoint's safetensors files"),
        (_only_adapter, "holds an adapter, which is no model by itself; merge it into its base model .'owner/base'."),
        (
            lambda folder: write_json(folder / "quantize_config.json", {"bits": 4, "group_size": 128}),
            r"quantised, as quantize_config.json says \(bits: 4\), and only float",
        ),
        (
            lambda folder: write_json(folder / "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}),
            "quantised, as hf_quant_config.json says .*FP8",
        ),
        *(
            (
                partial(_configure, {key: {"quant_method": "gptq", "bits": 4}}),
                f"quantised, as {key} of config.json .*'gptq'",
            )
            for key in ("quantization_config", "compression_config", "quantization")
        ),
        (partial(_configure, {"hidden_size": "9" * 10**5}), "hidden_size = '99"),
        (partial(_configure, {"num_hidden_layers": 10**5}), "num_hidden_layers = 100000, .* at most 1,000"),
    ],
)
def test_bad_small_files_get_a_sentence(tmp_path, damage, sentence):
    folder = write_checkpoint(tmp_path, "llama")
    (folder / "model.safetensors").unlink()
    damage(folder)
    with pytest.raises(InputError, match=sentence) as caught:
        Checkpoint.open(str(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_read_in_inference_mode_as_outside(tmp_path, dtype, weights):
    """The threads that read have no part in the caller's mode."""
    checkpoint = Checkpoint.open(str(write_checkpoint(tmp_path, "llama")))
    expected = checkpoint.load_model("cpu", dtype, max_length=64, weights=weights).state_dict()
    with torch.inference_mode():
        found = checkpoint.load_model("cpu", dtype, max_length=64, weights=weights).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_an_adapter_beside_a_model_gets_a_warning(tmp_path):
    folder = write_checkpoint(tmp_path, "llama")
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "owner/base"})
    with pytest.warns(UserWarning, match="holds an adapter beside a model; the model is read without it"):
        Checkpoint.open(str(folder)).load_model("cpu", torch.float32, max_length=64)


@pytest.mark.parametrize("section", [{}, {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}])
def test_a_section_that_asks_for_no_quantisation_is_none(tmp_path, section):
    folder = write_checkpoint(tmp_path, "llama", quantization_config=section)
    write_json(folder / "quant_config.json", {})
    assert Checkpoint.open(str(folder)).config.model_type == "llama"


@kinds
def test_the_largest_sizes_are_weighed_without_building_them(tmp_path, kind):
    sizes = {"hidden_size": 10**6, "intermediate_size": 10**7, "num_attention_heads": 10**4, "num_key_value_heads": 10**4}
    sizes |= {"vocab_size": 10**8, "num_hidden_layers": 1000, "head_dim": 10**4, "max_position_embeddings": 10**9}
    checkpoint = Checkpoint.open(str(write_checkpoint(tmp_path, kind)))
    checkpoint = replace(checkpoint, config=read_model_config(tiny_config(kind, **sizes)))
    began = time.perf_counter()
    a_layer = 3 * 10**6 * 10**7 + 4 * 10**6 * 10**8  # and its norms and biases, far smaller
    assert checkpoint.weight_bytes(torch.bfloat16) == pytest.approx(2 * (2 * 10**14 + 1000 * a_layer), rel=1e-3)
    assert time.perf_counter() - began < 1


def test_what_a_checkpoint_says_of_itself(tmp_path):
    folder = write_checkpoint(tmp_path, "phi3")
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.name == str(folder) and checkpoint.folder == folder
    assert checkpoint.config.model_type == "phi3"
    header, _, closing = checkpoint.chat.prompt_pieces(None)
    assert checkpoint.tokenizer.token_id("<|user|>") in header
    assert closing[0] in checkpoint.chat.stop_ids
    shutil.rmtree(folder)  # all that was needed has been read
    elements = sum(tensor.numel() for tensor in random_weights(tiny_config("phi3", checkpoint.config.vocab_size)).values())
    assert checkpoint.weight_bytes(torch.bfloat16) == 2 * elements
