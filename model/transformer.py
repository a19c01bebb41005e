"""What the architectures have in common: embedding, a stack of layers, a norm, a head.

A forward pass computes token by token except in attention, and attention is the business of the *context* that is passed
in: the KV cache (model/cache.py), branches that share one (model/branch.py), or plain causal attention when there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from model.attention import causal_attention
from model.config import AttentionOptions, ModelConfig
from model.kernels.compiled_layers import compiled_layers
from model.kernels.cuda_attention import expect_much
from model.rotary import RotaryEmbedding

# What a layer is handed: (q, k, v, options) -> attention output, all (batch, heads, seq_len, head_dim).
Attend = Callable[[Tensor, Tensor, Tensor, AttentionOptions], Tensor]
Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (batch, 1, seq_len, rotary_dim)


class Context(Protocol):
    """Where new tokens stand and what they attend to; see KVCache for the meaning of the three methods."""

    def positions(self, seq_len: int) -> Tensor: ...

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor: ...

    def advance(self, seq_len: int) -> None: ...


class NoCache:
    """Plain causal attention among the tokens of one call; nothing is kept."""

    def __init__(self, device: torch.device):
        self.device = device

    def positions(self, seq_len: int) -> Tensor:
        return torch.arange(seq_len, device=self.device).unsqueeze(0)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        return causal_attention(q, k, v, options)

    def advance(self, seq_len: int) -> None:
        pass


# How a layer is run: (layer, its index, hidden states, rotary, context) -> hidden states
RunLayer = Callable[[nn.Module, int, Tensor, Rotary, Context], Tensor]


def run_layer(layer: nn.Module, layer_idx: int, x: Tensor, rotary: Rotary, context: Context) -> Tensor:
    """The usual way: as it is written."""
    return layer(x, rotary, partial(context.attend, layer_idx))


class Transformer(nn.Module):
    """Embedding, layers and final norm.

    layer_type: makes a layer of (config, layer_idx), and names the norm of the family, `norm_type`
    """

    def __init__(self, config: ModelConfig, layer_type: type[nn.Module]):
        super().__init__()
        # With a weight of its own it draws none: on the meta device that would import the compiler, which takes a second.
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.layers = nn.ModuleList(layer_type(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = layer_type.norm_type(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config.rope, config.max_position_embeddings)

    def forward(self, x: Tensor, context: Context, run: RunLayer = run_layer) -> Tensor:
        """x: the tokens' embeddings. Returns hidden states. Both are (batch, seq_len, hidden_size)."""
        seq_len = x.shape[1]
        positions = context.positions(seq_len)  # (batch, seq_len), or (1, seq_len) for all rows alike
        rotary = self.rotary(positions, x.dtype)
        for layer_idx, layer in enumerate(self.layers):
            x = run(layer, layer_idx, x, rotary, context)
        context.advance(seq_len)
        return self.norm(x)


class CausalLM(nn.Module):
    """A transformer and the head that turns hidden states into logits.

    Subclasses name their layer. One that scales its embeddings or caps its logits says so in `embed` and `logits`: reading,
    decoding and training go through them.
    """

    layer_type: type[nn.Module]

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Transformer(config, self.layer_type)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.compiled = False

    def forward(
        self,
        token_ids: Tensor,
        context: Context | None = None,
        *,
        all_logits: bool = False,
        run: RunLayer | None = None,
    ) -> Tensor:
        """Read tokens.

        token_ids: (batch, seq_len) int64
        context: what came before and what may be attended to; None for nothing
        all_logits: by default only the last position's logits are computed: a chunk of 4,096 tokens of Llama 3.1 would
            otherwise cost a (4096, 128256) matrix that nobody reads
        run: how a layer is run; by default as it is written, and compiled after `compile_layers`
        Returns logits, (batch, 1 or seq_len, vocab_size).
        """
        if run is None:
            run = compiled_layers() if self.compiled else run_layer
        x = self.model(self.embed(token_ids), context if context is not None else NoCache(token_ids.device), run)
        # Contiguous, rows of a batch are one product with the head's matrix; else it is read for each of them.
        return self.logits(x if all_logits else x[:, -1:].contiguous())

    def embed(self, token_ids: Tensor) -> Tensor:
        """What the first layer reads: (batch, seq_len) to (batch, seq_len, hidden_size)."""
        return self.model.embed_tokens(token_ids)

    def logits(self, x: Tensor) -> Tensor:
        """What the last hidden states say of the next token: (batch, n, hidden_size) to (batch, n, vocab_size)."""
        return self.lm_head(x)

    def set_max_length(self, length: int) -> None:
        """Say how many positions the run will use at most; see RotaryEmbedding for what depends on it."""
        self.model.rotary.set_max_length(length)

    @torch.inference_mode(False)  # else only a thread in this mode could give them values
    def allocate(self, device: torch.device | str) -> CausalLM:
        """Give the parameters, which are on the meta device, memory for values to come. For inference only.

        Matrices that read the same input lie next to each other, see model/kernels/fused_linears.py; tied ones stay tied.
        """
        for layer in self.model.layers:
            for linears in layer.fused_linears():
                linears.allocate(device)
        made: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.modules():
            for name, like in module.named_parameters(recurse=False):
                if like.is_meta:
                    if like not in made:  # not by empty_like, which from the meta device imports the compiler: for seconds
                        values = torch.empty(like.shape, dtype=like.dtype, device=device)
                        made[like] = nn.Parameter(values, requires_grad=False)
                    setattr(module, name, made[like])
        return self

    def compile_layers(self) -> None:
        """From now on compile the layers with torch.compile, for reading and for decoding. For inference on CUDA.

        The first forward pass and the first decode step then take seconds more, which thousands of later tokens make up
        for. For the same reason attention may take kernels that are slow to make (model/kernels/cuda_attention.py).
        Without this, nothing imports the compiler.
        """
        self.compiled = True
        expect_much()
