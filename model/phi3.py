"""Phi-3 (arXiv 2404.14219): LLaMA with queries, keys and values from one matrix, gate and up from another, and no bias.

The 4k variants attend through a sliding window; the 128k variants use LongRoPE (model/rotary.py); the later mini rotates
only a part of each head.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.config import AttentionOptions, ModelConfig
from model.kernels.fused_linears import FusedLinears
from model.llama import LlamaAttention, LlamaLayer, LlamaMLP
from model.transformer import CausalLM


class Phi3Attention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer_idx: int):
        nn.Module.__init__(self)  # other matrices than LLaMA's
        self.head_dim, self.options = config.head_dim, AttentionOptions(config.sliding_windows[layer_idx])
        n_q, n_kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.sizes = (n_q, n_kv, n_kv)
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.sizes), bias=False)
        self.o_proj = nn.Linear(n_q, config.hidden_size, bias=False)

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (batch, seq_len, hidden_size); returns q, k and v, each (batch, seq_len, n * head_dim)."""
        return self.qkv_proj(x).split(self.sizes, dim=-1)


class Phi3MLP(LlamaMLP):
    def __init__(self, config: ModelConfig):
        nn.Module.__init__(self)
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def gate_up(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (batch, seq_len, hidden_size); returns gate and up, each (batch, seq_len, intermediate_size)."""
        return self.gate_up_proj(x).chunk(2, dim=-1)


class Phi3Layer(LlamaLayer):
    attention_type = Phi3Attention
    mlp_type = Phi3MLP

    def fused_linears(self) -> list[FusedLinears]:
        return []  # published as one matrix


class Phi3(CausalLM):
    """Phi3ForCausalLM of the published checkpoints."""

    layer_type = Phi3Layer
