"""LLaMA 3.1 (arXiv 2407.21783): grouped-query attention, rotary positions, SwiGLU, RMSNorm before each block.

Module names are those of the published checkpoints, so a state dict loads as it is. The other families are written as what
they do differently.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import AttentionOptions, ModelConfig
from model.kernels.fused_linears import FusedLinears
from model.rotary import apply_rotary
from model.transformer import Attend, CausalLM, Rotary


class LlamaAttention(nn.Module):
    """Queries, keys and values of x; queries and keys rotated by their positions; attention; one more matrix.

    Grouped-query (arXiv 2305.13245): several heads of queries share one head of keys and values, so the cache is smaller.
    """

    def __init__(self, config: ModelConfig, layer_idx: int):
        super().__init__()
        self.head_dim, self.options = config.head_dim, AttentionOptions(config.sliding_windows[layer_idx])
        n_q, n_kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, n_q, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, n_kv, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, n_kv, bias=config.attention_bias)
        self.qkv = FusedLinears(self.q_proj, self.k_proj, self.v_proj)  # for speed one product
        self.o_proj = nn.Linear(n_q, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        """x: (batch, seq_len, hidden_size); returns the same shape."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = self.qkv(x)  # (batch, seq_len, n * head_dim)
        q, k = self.normed(q.view(heads), k.view(heads))
        q = q.transpose(1, 2)  # (batch, n_heads, seq_len, head_dim)
        k = k.transpose(1, 2)  # (batch, n_kv_heads, seq_len, head_dim)
        v = v.view(heads).transpose(1, 2)  # (batch, n_kv_heads, seq_len, head_dim)
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        # KVCache.attend: stores k and v in the cache, then lets q attend to all that the cache holds.
        out = attend(q, k, v, self.options)  # (batch, n_heads, seq_len, head_dim)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (batch, seq_len, hidden_size)

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """For families that norm queries and keys, (batch, seq_len, n, head_dim); LLaMA leaves them as they are."""
        return q, k


class LlamaMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), for each token alone."""

    activation = staticmethod(F.silu)

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.gate_up = FusedLinears(self.gate_proj, self.up_proj)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, seq_len, hidden_size); returns the same shape."""
        gate, up = self.gate_up(x)  # each (batch, seq_len, intermediate_size)
        return self.down_proj(self.activation(gate) * up)


class LlamaLayer(nn.Module):
    """Attention and the MLP: each reads a normed x, and what it computes is added to x."""

    attention_type: type[nn.Module] = LlamaAttention
    mlp_type: type[nn.Module] = LlamaMLP
    norm_type: type[nn.Module] = nn.RMSNorm

    def __init__(self, config: ModelConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = self.norm_type(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = self.attention_type(config, layer_idx)
        self.post_attention_layernorm = self.norm_type(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = self.mlp_type(config)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        """x: (batch, seq_len, hidden_size); returns the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, attend)
        return x + self.mlp(self.post_attention_layernorm(x))

    def fused_linears(self) -> list[FusedLinears]:
        """The products that read the same input; see model/kernels/fused_linears.py."""
        return [self.self_attn.qkv, self.mlp.gate_up]


class Llama(CausalLM):
    """LlamaForCausalLM of the published checkpoints."""

    layer_type = LlamaLayer
