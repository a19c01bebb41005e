"""Qwen2 (arXiv 2407.10671): LLaMA with a bias on queries, keys and values, and on nothing else.

If the checkpoint asks for it, the upper layers attend through a sliding window (ModelConfig.sliding_windows). YaRN
stretches the model beyond 32K positions (model/rotary.py).
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from model.config import ModelConfig
from model.llama import LlamaAttention, LlamaLayer
from model.transformer import CausalLM


class Qwen2Attention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer_idx: int):
        super().__init__(replace(config, attention_bias=True), layer_idx)
        self.o_proj = nn.Linear(self.o_proj.in_features, config.hidden_size, bias=False)


class Qwen2Layer(LlamaLayer):
    attention_type = Qwen2Attention


class Qwen2(CausalLM):
    """Qwen2ForCausalLM of the published checkpoints."""

    layer_type = Qwen2Layer
