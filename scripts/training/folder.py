"""A checkpoint folder as they are published: configuration, tokenizer, chat template, weights.

config.json  generation_config.json  tokenizer_config.json  model.safetensors  wim.json
tokenizer.json      byte-level BPE (llama, qwen2)
tokenizer.model     SentencePiece BPE with bytes for what it has no piece for (phi3)
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from model.errors import InputError
from model.transformer import CausalLM
from training.choices import SIZES
from weights import Checkpoint
from weights.files import read_json
from weights.safetensors_loader import load_weights, read_headers
from wim.settings import WISHES, Wishes

# What margins are learnt on and take: chunks of this size, and a few short sentences.
READING = {"chunk_tokens": 256, "margin_tokens": 64, "margins": "written"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
BOS, END_OF_TURN, PAD = "<s>", "<|end|>", "<|endoftext|>"
CONTROL_TOKENS = (PAD, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)  # besides BOS
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# What a byte-level token may span: a word with the space before it, one digit, punctuation, line ends. Line ends stay
# apart from what is on either side, so a prompt tokenized in parts (header, document, question) has the tokens of the
# whole.
PIECES = r"\n+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?=[^\S\n])|[^\S\n]"
# The pieces of all published Qwen2 tokenizers; transformers sets them whatever tokenizer.json says. They are wider than
# ours, so a vocabulary learnt from ours makes the same tokens of them.
QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER_CLASSES = {"llama": "PreTrainedTokenizerFast", "phi3": "LlamaTokenizer", "qwen2": "Qwen2Tokenizer"}

ARCHITECTURES = {"llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def make_folder(folder: Path) -> None:
    """Make the folder where it is not there. Raises InputError where it cannot be made, or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written to ({error.strerror}); give another one.") from None


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place in the end: there is never half a file.

    Raises InputError where it cannot be written; the half file is gone then, and what was at `path` stays.
    """
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
    except KeyboardInterrupt:
        beside.unlink(missing_ok=True)
        raise
    except Exception as error:  # torch, safetensors and tokenizers have exceptions of their own for a full disk
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(
            f"{path} cannot be written ({reason}); check the free space, and go on with --resume where a state was saved."
        ) from None


def _without_tokenizer(folder: Path) -> None:
    """Make the folder, and remove a tokenizer of another kind that a run left there: it might be read instead."""
    make_folder(folder)
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)


def write_tokenizer(family: str, folder: Path, texts: Iterable[str], vocab_size: int) -> None:
    """Train a tokenizer of the family's kind on `texts` and write its files."""
    if family == "phi3":
        ids = _train_sentencepiece(folder, texts, vocab_size)
    else:
        ids = _train_byte_level(folder, texts, vocab_size, qwen2=family == "qwen2")
    added = {
        str(id): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, id in ids.items()
    }
    config = {
        "tokenizer_class": TOKENIZER_CLASSES[family],
        "bos_token": BOS,
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
    }
    if family == "phi3":
        config |= {"unk_token": "<unk>", "add_bos_token": False, "add_eos_token": False, "legacy": False}
        config |= {"add_prefix_space": False, "use_default_system_prompt": False}
        _write_json(folder / "added_tokens.json", {token: id for token, id in ids.items() if token in CONTROL_TOKENS})
    _write_json(folder / "tokenizer_config.json", config)
    named = {"bos_token_id": ids[BOS], "eos_token_id": ids[END_OF_TURN], "pad_token_id": ids[PAD]}
    _write_json(folder / "generation_config.json", {**named, "do_sample": False})


def _train_byte_level(folder: Path, texts: Iterable[str], vocab_size: int, qwen2: bool) -> dict[str, int]:
    def split_at(pieces: str) -> pre_tokenizers.PreTokenizer:
        split = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split_at(PIECES)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, *CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() > vocab_size:
        least = tokenizer.get_vocab_size()
        raise InputError(f"A vocabulary of {vocab_size} is too small; give {least}, for bytes and control tokens, or more.")
    if qwen2:
        tokenizer.pre_tokenizer, tokenizer.normalizer = split_at(QWEN2_PIECES), normalizers.NFC()
    _without_tokenizer(folder)
    with in_one_move(folder / "tokenizer.json") as beside:
        tokenizer.save(str(beside))
    return {token: tokenizer.token_to_id(token) for token in (BOS, *CONTROL_TOKENS)}


def _train_sentencepiece(folder: Path, texts: Iterable[str], vocab_size: int) -> dict[str, int]:
    n_pieces = vocab_size - len(CONTROL_TOKENS)  # these are added after the model's own, as Phi-3 does
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.split("\n") if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=n_pieces,
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=1 << 20,
            minloglevel=1,
        )
    except RuntimeError as error:  # too few pieces for the characters, or more than the text gives
        reason = str(error).rpartition("] ")[2].rstrip(".")
        raise InputError(f"No {n_pieces} pieces can be learnt ({reason}); change vocab_size, or give more text.") from None
    _without_tokenizer(folder)
    with in_one_move(folder / "tokenizer.model") as beside:
        beside.write_bytes(model.getvalue())
    return {BOS: 1, **{token: n_pieces + i for i, token in enumerate(CONTROL_TOKENS)}}


def make_config(family: str, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """What config.json says of a model of `sizes` (those that are given; `SIZES` for the others), without token ids."""
    sizes = {**SIZES, **(sizes or {})}
    config = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **sizes,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    if family == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    elif family == "phi3":
        config |= {"sliding_window": None, "rope_scaling": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        config["original_max_position_embeddings"] = sizes["max_position_embeddings"]
    elif family == "qwen2":
        config |= {"use_sliding_window": False, "sliding_window": None}
    return config


def write_config(family: str, folder: Path, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write `make_config` with the token ids of the folder's tokenizer, and return it."""
    generation = read_json(folder / "generation_config.json")
    config = make_config(family, sizes)
    config |= {key: generation.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "config.json", config)
    return config


def write_weights(model: CausalLM, folder: Path) -> None:
    """Write model.safetensors in bfloat16. Raises InputError where the disk is full, say."""
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")  # it is the embedding
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    with in_one_move(folder / "model.safetensors") as beside:
        save_file(tensors, beside, metadata={"format": "pt"})
        beside.chmod(0o644)  # save_file lets only its owner read it


def tokenizer_fingerprint(folder: Path) -> str | None:
    """A short name for the tokenizer of a folder; None where there is none."""
    files = [folder / name for name in ("tokenizer.json", "tokenizer.model") if (folder / name).is_file()]
    return hashlib.sha256(files[0].read_bytes()).hexdigest()[:16] if files else None


def write_wishes(source: Path, folder: Path) -> None:
    """Write how the checkpoint is to be read and asked: as `source` wishes, and as demos are where it is silent."""
    wishes = Wishes.of(source)
    _write_json(folder / WISHES, {**READING, **wishes.values, "prompts": vars(wishes.prompts)})


def copy_tokenizer(source: Path, folder: Path) -> None:
    _without_tokenizer(folder)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            with in_one_move(folder / name) as beside:
                shutil.copyfile(source / name, beside)


def read_weights(model: CausalLM, folder: Path) -> None:
    """The weights of a checkpoint folder such as `write_weights` and its neighbours wrote.

    Raises InputError for a folder that is not complete, and for weights of another family or size.
    """
    config = Checkpoint.open(str(folder)).config
    read_json(folder / "generation_config.json")  # `write_config` will ask for it
    found = {name: tensor.shape for name, tensor in read_headers(folder).items()}
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wanted.pop("lm_head.weight")  # it is the embedding
    if found != wanted or config.head_dim != model.config.head_dim:  # heads of another size have the same shapes
        raise InputError(f"{folder} is not of the family and the sizes asked for; give the --family and --size it has.")
    load_weights(model, folder)
    model.requires_grad_(True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with in_one_move(path) as beside:
        beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
