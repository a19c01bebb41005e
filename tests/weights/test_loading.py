"""weights/safetensors_loader.py and weights/checkpoint.py: a folder becomes a model, or a sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from weights_helpers import random_weights, tiny_config, write_checkpoint, write_json

from model import build_model
from model.errors import InputError
from weights import Checkpoint
from weights.config import read_model_config
from weights.safetensors_loader import load_weights

KINDS = ["llama", "phi3", "qwen2"]
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
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_the_logits_of_transformers(tmp_path, kind, tied, sharded):
    folder = write_checkpoint(tmp_path, kind, tie_word_embeddings=tied)
    if sharded:
        shard(folder)
    model = Checkpoint.open(str(folder)).load_model("cpu", torch.float32, planned_length=64)
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
    model = checkpoint.load_model("cpu", dtype, planned_length=64)
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
    model = Checkpoint.open(str(folder)).load_model("cpu", torch.float32, planned_length=64)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, embedding)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_with_different_values_is_not_tied(tmp_path, kind):
    """Whatever config.json says: a fine-tuned head with the flag of its base model. As transformers 5 has it."""
    folder = write_checkpoint(tmp_path, kind, tie_word_embeddings=True)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].flip(0)}))
    model = Checkpoint.open(str(folder)).load_model("cpu", torch.float32, planned_length=64)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        assert (model(IDS, all_logits=True) - oracle(IDS).logits).abs().max() < 1e-4

    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.ones(3, 32)}))
    with pytest.raises(InputError, match="lm_head.weight .the file has .3, 32."):
        Checkpoint.open(str(folder)).load_model("cpu", torch.float32, planned_length=64)


def test_old_checkpoints_may_store_rotary_frequencies(tmp_path):
    folder = write_checkpoint(tmp_path, "llama")
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    Checkpoint.open(str(folder)).load_model("cpu", torch.float32, planned_length=64)


def test_the_loaded_model_does_not_hang_on_the_file(tmp_path):
    folder = write_checkpoint(tmp_path, "llama")
    model = Checkpoint.open(str(folder)).load_model("cpu", torch.float32, planned_length=64)
    before = model.model.norm.weight.clone()
    with (folder / "model.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(b"\0" * (size - size // 2))
    assert torch.equal(model.model.norm.weight, before)


def test_one_tensor_at_a_time(tmp_path, monkeypatch):
    """No moment at which more than one tensor has been read and not yet been put into the model."""
    folder = write_checkpoint(tmp_path, "llama")
    with torch.device("meta"):
        model = build_model(read_model_config(json.loads((folder / "config.json").read_text())))
    waiting = []
    empty = torch.empty

    def counted(*args, **kwargs):
        waiting.append(sum(not parameter.is_meta for parameter in model.parameters()))
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", counted)
    load_weights(model, folder, device="cpu", dtype=torch.float32)
    assert waiting == list(range(len(list(model.parameters()))))


def test_progress_is_told_in_bytes(tmp_path, capsys):
    folder, told = write_checkpoint(tmp_path, "llama"), []
    model = Checkpoint.open(str(folder)).load_model(
        "cpu", torch.float32, planned_length=64, progress=lambda *step: told.append(step)
    )
    n_tensors = len(list(model.parameters()))
    done, totals = zip(*told, strict=True)
    assert len(told) == n_tensors and set(totals) == {done[-1]}
    assert list(done) == sorted(set(done)) and done[-1] == sum(
        tensor.nbytes for tensor in load_file(folder / "model.safetensors").values()
    )
    assert capsys.readouterr() == ("", "")


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


def _rename_to(name):
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def _overwrite(content):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def _tensors(change):
    return lambda folder: rewrite(folder, change)


def _drop_norms(tensors):
    for name in [name for name in tensors if "norm" in name] + ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]:
        del tensors[name]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_tensors(lambda t: t.pop("model.norm.weight")), "missing tensors: model.norm.weight. Download"),
        (_tensors(_drop_norms), r"missing tensors: (\S+, ){5}\.\.\. and 2 more"),
        (_tensors(lambda t: t.update({"model.extra": torch.ones(1)})), "unexpected tensors: model.extra"),
        (
            _tensors(lambda t: t.update({"model.norm.weight": torch.ones(33)})),
            r"another shape: model.norm.weight \(the file has \[33\], config.json asks for \[32\]\)",
        ),
        (
            _tensors(lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
            r"not floating point: model.norm.weight \(I8\)",
        ),
        (_truncate, "model.safetensors is cut short or damaged"),
        (_overwrite(b""), "model.safetensors is cut short or damaged"),
        (_overwrite(b"PK\3\4" * 99), "model.safetensors is cut short or damaged"),
        (_overwrite(POINTER), "only a Git LFS pointer"),
        (_absent_shard, "index.json names model-00002-of-00002.safetensors, which is not in the folder"),
        (lambda folder: _index(folder, {"a": "../secret.safetensors"}), "'../secret.safetensors', which is not a"),
        (lambda folder: _index(folder, {"a": "weights.bin"}), "'weights.bin', which is not a .safetensors file"),
        (lambda folder: _index(folder, {"a": 1}), "has no 'weight_map'"),
        (lambda folder: _index(folder, {}), "has no 'weight_map'"),
        (_rename_to("pytorch_model.bin"), "holds weights as pytorch_model.bin, a pickle, which can run code"),
        (_rename_to("consolidated.00.pth"), "a pickle, which can run code"),
        (_rename_to("other.safetensors"), "has other.safetensors but no model.safetensors"),
        (_rename_to("nothing"), "has no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_bad_weights_get_a_sentence(tmp_path, damage, sentence):
    folder = write_checkpoint(tmp_path, "llama")
    damage(folder)
    checkpoint = Checkpoint.open(str(folder))  # the small files are right
    with pytest.raises(InputError, match=sentence) as caught:
        checkpoint.load_model("cpu", torch.float32, planned_length=64)
    assert "\n" not in str(caught.value)


# Bad small files, found before any weights are


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json, so it is no checkpoint folder"),
        (lambda folder: (folder / "config.json").write_text("{,"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0"), "config.json is not UTF-8"),
        (lambda folder: write_json(folder / "config.json", [1]), "should hold a JSON object but holds a list"),
        (
            lambda folder: write_json(folder / "config.json", {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}),
            "'GPT2LMHeadModel' is not supported.*LlamaForCausalLM.*Phi3ForCausalLM.*Qwen2ForCausalLM",
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
    ],
)
def test_bad_small_files_get_a_sentence(tmp_path, damage, sentence):
    folder = write_checkpoint(tmp_path, "llama")
    (folder / "model.safetensors").unlink()
    damage(folder)
    with pytest.raises(InputError, match=sentence) as caught:
        Checkpoint.open(str(folder))
    assert "\n" not in str(caught.value)


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
