"""Small checkpoint folders for the tests of weights/, in the shapes that the families' checkpoints are published in."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import sentencepiece
import torch
from model_variants import PLAIN
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.tokenization_utils_base import generate_merges

from model import build_model
from weights.config import read_model_config
from weights.families import FAMILIES

CORPUS = [
    "Mary went to the garden. John picked up the football there.\n\nThen he dropped it in the kitchen.",
    "It was the best of times, it was the worst of times; the age of wisdom, the age of foolishness.",
    "def answer(x):\n    return {'x': x, 'y': [1, 2, 3]}  # 42 <b>bold</b>\r\n",
    "Ça va très bien, merci. Größe, naïve café, 你好,世界。 emoji 🙂🙃",
] * 20

LLAMA_TEMPLATE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Knowledge up to: December 2023\\n\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content']|trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
PHI3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# It has the model think unless told not to; then it writes an empty thought itself.
THINKING_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
# As in the third version of the 7B: a system prompt joins the user's text.
INST_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + system + message.content + '[/INST]' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
# And as those with a byte-level vocabulary (Nemo) have it: no spaces.
MISTRAL_TEMPLATE = INST_TEMPLATE.replace("[INST] ", "[INST]").replace("' ' + ", "")
LLAMA_CONTROL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
]
QWEN2_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MISTRAL_CONTROL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
CONTROL = {"llama": LLAMA_CONTROL, "qwen2": QWEN2_CONTROL, "thinking": QWEN2_CONTROL, "mistral": MISTRAL_CONTROL}
# Kinds of tokenizer and chat template, and whose they are: a later Mistral's is byte-level, an earlier one's is not.
TEXTS = {"llama": "llama", "phi3": "phi3", "qwen2": "qwen2", "thinking": "qwen3", "mistral": "mistral", "inst": "mistral"}
PHI3_ADDED = [
    AddedToken("<|endoftext|>", special=True, normalized=False),
    *(
        AddedToken(content, special=True, rstrip=True, normalized=False)
        for content in ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    ),
]


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def tiny_config(kind: str, vocab_size: int, **changes: object) -> dict[str, object]:
    """A published-style config.json of a model with a few thousand parameters."""
    return {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


@functools.cache
def byte_level(kind: str) -> str:
    """A tokenizer.json as Llama 3.1, Qwen or a later Mistral has it, trained on the corpus."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind in ("llama", "mistral")))
    if kind in ("qwen2", "thinking"):
        tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(CONTROL[kind])
    if kind == "thinking":
        tokenizer.add_tokens(["<think>", "</think>"])
    if kind in ("llama", "mistral"):
        bos = {"llama": "<|begin_of_text|>", "mistral": "<s>"}[kind]
        template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer.to_str()


@functools.cache
def sentencepiece_model(model_type: str = "bpe", **options: object) -> bytes:
    """A tokenizer.model as Llama 2 and Phi-3 have it: spaces and Unicode as they are, unknown characters in bytes."""
    model = io.BytesIO()
    settings = {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=480,
        model_type=model_type,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def vocab_and_merges(model: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    return vocab, generate_merges(vocab, skip_tokens=["<unk>", "<s>", "</s>"])


@functools.cache
def phi3_json() -> str:
    """A tokenizer.json as Phi-3 has it, of the same vocabulary as `sentencepiece_model()`."""
    vocab, merges = vocab_and_merges(sentencepiece_model())
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.add_tokens([AddedToken("</s>", rstrip=True, normalized=False, special=False)])
    tokenizer.add_special_tokens(PHI3_ADDED)
    return tokenizer.to_str()


@functools.cache
def inst_json() -> str:
    """A tokenizer.json as the third version of Mistral-7B has it: a space before the first word of a prompt alone."""
    vocab, merges = vocab_and_merges(sentencepiece_model())
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(MISTRAL_CONTROL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer.to_str()


def write_tokenizer(folder: Path, kind: str, **changes: object) -> Path:
    """The tokenizer and chat template of a kind of checkpoint, and its config.json.

    kind: one of TEXTS, or a family that has no text of its own there, whose text is then that of Llama 3.1
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object]
    if kind == "phi3":
        text = phi3_json()
        config = {
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "add_bos_token": False,
            "legacy": False,
            "tokenizer_class": "LlamaTokenizer",
            "chat_template": PHI3_TEMPLATE,
        }
    elif kind in ("qwen2", "thinking"):
        text = byte_level(kind)
        config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        config |= {"add_prefix_space": False, "tokenizer_class": "Qwen2Tokenizer"}
        config["chat_template"] = THINKING_TEMPLATE if kind == "thinking" else QWEN2_TEMPLATE
    elif kind in ("mistral", "inst"):
        text = inst_json() if kind == "inst" else byte_level(kind)
        config = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        config["chat_template"] = INST_TEMPLATE if kind == "inst" else MISTRAL_TEMPLATE
    else:
        text = byte_level("llama")
        config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": LLAMA_TEMPLATE}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {**config, **changes})
    write_json(folder / "config.json", tiny_config(TEXTS.get(kind, kind), Tokenizer.from_str(text).get_vocab_size()))
    return folder


def write_checkpoint(folder: Path, kind: str, seed: int = 0, **changes: object) -> Path:
    """A whole checkpoint folder with random weights in one file; `changes` go to config.json."""
    write_tokenizer(folder, kind)
    config = json.loads((folder / "config.json").read_text()) | changes
    write_json(folder / "config.json", config)
    torch.manual_seed(seed)
    save_file(random_weights(config), folder / "model.safetensors")
    return folder


def random_weights(config: dict[str, object]) -> dict[str, torch.Tensor]:
    """Random values for all parameters of the model, by name; tied ones under their first name only."""
    with torch.device("meta"):
        model = build_model(read_model_config(config))
    [weights] = [variant.weights for variant in PLAIN if variant.kind == config["model_type"]]
    return {name: weights(name, torch.randn(parameter.shape)) for name, parameter in model.named_parameters()}
