"""Mistral (arXiv 2310.06825): LLaMA's layers, through a sliding window in the first version (ModelConfig.sliding_windows).

Later versions see everything; some say how large a head is, which need not be a share of the hidden size.
"""

from __future__ import annotations

from model.llama import LlamaLayer
from model.transformer import CausalLM


class Mistral(CausalLM):
    """MistralForCausalLM of the published checkpoints."""

    layer_type = LlamaLayer
