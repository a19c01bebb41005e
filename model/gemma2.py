"""Gemma 2 (arXiv 2408.00118): norms before and behind each block, soft caps, and every other layer slides.

Differences from LLaMA: a norm's weight is what it multiplies by beyond 1; the embedding is scaled by the square root of its
width; scores and logits are capped; scores have a scale of their own; the activation is GELU.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.llama import LlamaAttention, LlamaLayer, LlamaMLP
from model.transformer import Attend, CausalLM, Rotary


class Gemma2Norm(nn.RMSNorm):
    """In float32, whatever comes in: 1 + weight would lose its last digits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).to(x.dtype)


class Gemma2Attention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        cap, scale = config.own["attn_logit_softcapping"], config.own["query_pre_attn_scalar"] ** -0.5
        self.options = replace(self.options, soft_cap=cap, scale=scale)


class Gemma2MLP(LlamaMLP):
    activation = staticmethod(partial(F.gelu, approximate="tanh"))


class Gemma2Layer(LlamaLayer):
    attention_type = Gemma2Attention
    mlp_type = Gemma2MLP
    norm_type = Gemma2Norm

    def __init__(self, config: ModelConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.pre_feedforward_layernorm = self.norm_type(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = self.norm_type(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rotary, attend))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Gemma2(CausalLM):
    """Gemma2ForCausalLM of the published checkpoints."""

    layer_type = Gemma2Layer

    def embed(self, token_ids: Tensor) -> Tensor:
        x = super().embed(token_ids)
        # Rounded to x's dtype, as the model was trained; on the host, since a captured step cannot copy it to a device.
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device="cpu")

    def logits(self, x: Tensor) -> Tensor:
        cap = self.config.own["final_logit_softcapping"]
        return super().logits(x) if cap is None else cap * (super().logits(x) / cap).tanh()
