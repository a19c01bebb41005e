"""Rotary position embedding (RoFormer, arXiv 2104.09864) and its long-context variants.

A pair of channels (i, i + rotary_dim/2) of a query or key at position p is turned by the angle p * inv_freq[i]; the dot
product of a query and a key then depends on the distance between them. The variants change `inv_freq`, and some scale
cosine and sine by an attention factor:

    default    inv_freq[i] = theta ** (-2i / rotary_dim)
    linear     all frequencies divided by `factor` (position interpolation, arXiv 2306.15595)
    llama3     low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3.1)
    yarn       the same idea, the ramp over channels; an attention factor (arXiv 2309.00071)
    longrope   one searched divisor for each frequency, one list for short and one for long inputs (arXiv 2402.13753)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import RopeConfig


class RotaryEmbedding(nn.Module):
    """Cosines and sines for positions.

    LongRoPE has two sets of factors, chosen by the length of the input. Keys that are already in a cache were turned by
    one set and cannot change to the other, so the choice is made once for a whole run, by `set_max_length`.
    """

    def __init__(self, rope: RopeConfig, max_position_embeddings: int):
        super().__init__()
        self.rope = rope
        self.set_max_length(max_position_embeddings)

    def set_max_length(self, length: int) -> None:
        """Choose the frequencies for a run of at most `length` positions."""
        # Not a buffer: it is computed, never loaded, and stays float32 whatever the model's dtype.
        self.inv_freq, self.attention_factor = frequencies(self.rope, length)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions: (batch, seq_len) int64. Returns cos and sin, (batch, 1, seq_len, rotary_dim) in `dtype`.

        The first half of sin is negated, as `apply_rotary` wants it.
        """
        if self.inv_freq.device != positions.device:
            self.inv_freq = self.inv_freq.to(positions.device)
        angles = positions[:, None, :, None].float() * self.inv_freq  # (batch, 1, seq_len, rotary_dim / 2)
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first `rotary_dim` channels of x: (batch, n_heads, seq_len, head_dim); the others pass."""
    rotary_dim = cos.shape[-1]
    turned, passed = x[..., :rotary_dim], x[..., rotary_dim:]
    # (a, b) becomes (a cos - b sin, b cos + a sin). The halves change places by `flip`, which a compiler sees through.
    swapped = turned.view(*turned.shape[:-1], 2, -1).flip(-2).flatten(-2)
    turned = turned * cos + swapped * sin
    return torch.cat((turned, passed), dim=-1) if passed.shape[-1] else turned


def frequencies(rope: RopeConfig, length: int) -> tuple[Tensor, float]:
    """The frequencies, (rotary_dim / 2,) float32, and the attention factor, for a run of at most `length` positions."""
    if rope.rope_type == "longrope":
        return _longrope(rope, length)
    inv_freq = 1.0 / _powers(rope)
    variant = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}.get(rope.rope_type)
    return variant(rope, inv_freq) if variant else (inv_freq, 1.0)


def _powers(rope: RopeConfig) -> Tensor:
    """theta^(2i / rotary_dim), (rotary_dim / 2,) float32: what the positions are divided by."""
    return rope.theta ** (torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32, device="cpu") / rope.rotary_dim)


def _linear(rope: RopeConfig, inv_freq: Tensor) -> tuple[Tensor, float]:
    return inv_freq / rope.parameters["factor"], 1.0


def _llama3(rope: RopeConfig, inv_freq: Tensor) -> tuple[Tensor, float]:
    low, high = rope.parameters["low_freq_factor"], rope.parameters["high_freq_factor"]
    # How many turns a channel makes within the original context decides what happens to it.
    turns = rope.original_max_position_embeddings * inv_freq / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: divide by the factor; 1: keep
    return keep * inv_freq + (1 - keep) * inv_freq / rope.parameters["factor"], 1.0


def _yarn(rope: RopeConfig, inv_freq: Tensor) -> tuple[Tensor, float]:
    factor = rope.parameters["factor"]

    def channel(turns: float) -> float:
        """The channel that makes `turns` turns within the original context (section 3.2)."""
        wavelength = rope.original_max_position_embeddings / turns
        return rope.rotary_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    low = channel(rope.parameters.get("beta_fast") or 32)
    high = channel(rope.parameters.get("beta_slow") or 1)
    if rope.parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    ramp = (torch.arange(rope.rotary_dim // 2, device="cpu") - low) / ((high - low) or 0.001)
    interpolate = ramp.clamp(0, 1)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_factor = rope.parameters.get("attention_factor")
    if attention_factor is None:
        numerator, denominator = rope.parameters.get("mscale"), rope.parameters.get("mscale_all_dim")
        attention_factor = mscale(numerator) / mscale(denominator) if numerator and denominator else mscale(1.0)
    return interpolate * inv_freq / factor + (1 - interpolate) * inv_freq, float(attention_factor)


def _longrope(rope: RopeConfig, length: int) -> tuple[Tensor, float]:
    original, factor = rope.original_max_position_embeddings, rope.parameters["factor"]
    factors = rope.parameters["long_factor" if length > original else "short_factor"]
    attention_factor = rope.parameters.get("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * _powers(rope)), float(attention_factor)
