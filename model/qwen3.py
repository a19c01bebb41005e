"""Qwen3 (arXiv 2505.09388): LLaMA with a norm on each head's queries and keys, before they are turned.

The size of a head is given, not a share of the hidden size. As in Qwen2, upper layers may attend through a sliding window.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.config import ModelConfig
from model.llama import LlamaAttention, LlamaLayer
from model.transformer import CausalLM


class Qwen3Attention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class Qwen3Layer(LlamaLayer):
    attention_type = Qwen3Attention


class Qwen3(CausalLM):
    """Qwen3ForCausalLM of the published checkpoints."""

    layer_type = Qwen3Layer
