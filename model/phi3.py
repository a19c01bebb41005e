"""Phi-3 (arXiv 2404.14219): LLaMA's layer with queries, keys and values from one matrix, gate and up from another.

The 4k variants attend through a sliding window; the 128k variants use LongRoPE (model/rotary.py); the later mini rotates
only a part of each head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.rotary import apply_rotary
from model.transformer import Attend, CausalLM


class Phi3Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer_idx: int):
        super().__init__()
        self.head_dim, self.window = config.head_dim, config.sliding_windows[layer_idx]
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.qkv_proj = nn.Linear(config.hidden_size, (self.n_heads + 2 * self.n_kv_heads) * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """x: (batch, seq_len, hidden_size); returns the same shape."""
        qkv = self.qkv_proj(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)  # (batch, heads, seq_len, head_dim)
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        out = attend(q, k, v, self.window)  # (batch, n_heads, seq_len, head_dim)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (batch, seq_len, hidden_size)


class Phi3MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # each (batch, seq_len, intermediate_size)
        return self.down_proj(F.silu(gate) * up)


class Phi3Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Phi3Attention(config, layer_idx)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Phi3MLP(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Phi3(CausalLM):
    """Phi3ForCausalLM of the published checkpoints."""

    layer_type = Phi3Layer
