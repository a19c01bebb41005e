"""Tensor parallelism: one model over several cards, each with a share of every layer (Megatron-LM, arXiv 1909.08053).

A process for each card, its *rank*, runs the same program on the same tokens. A layer has two blocks, and each block is two
matrix products with something between them that treats its channels apart: attention its heads, the MLP its inner channels.
So the first matrix is cut by outputs ("column parallel") and the second by inputs ("row parallel"). Nothing is exchanged
between the two, and after the second the ranks' outputs are added up:

                 q, k, v or gate, up          attention or silu            o or down
    rank 0   x → [ first half of the outputs ] → half of the heads    → [ for these inputs ] ─┐
    rank 1   x → [ second half               ] → the other half       → [ for those        ] ─┴─ all-reduce → on every rank

That makes two all-reduces a layer. The vocabulary is shared out as well: a rank embeds its own tokens and leaves zeros for
the others, and it computes the logits of its own tokens. Zeros are added up to the whole, so every rank has the same bits.

The cache holds the keys and values of a rank's own heads. `length` and rollback are those of every rank: the ranks run in
lockstep, and what a host decides by (tokens, probabilities, masses of attention) is rank 0's, or the same everywhere. How
they tell each other is in model/processes.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.branch import Branches
from model.cache import KVCache
from model.config import ModelConfig
from model.errors import InputError
from model.families import build_model
from model.processes import Process, all_reduce, join
from model.sampling import Sampler
from model.session import Rows, Session
from model.transformer import CausalLM

FIRST = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")  # cut by outputs
SECOND = ("o_proj", "down_proj")  # cut by inputs
VOCABULARY = ("embed_tokens", "lm_head")


class Cut(NamedTuple):
    """What a rank takes of a tensor: some ranges along one dimension, perhaps none.

    dim, size: that dimension, and how long it is in the whole tensor
    """

    dim: int
    size: int
    ranges: tuple[range, ...]


class Rank(Process):
    """A process with its part of a model."""

    def share(self, config: ModelConfig) -> ModelConfig:
        """The numbers of a rank's model: its share of heads and of inner channels; the vocabulary is still the whole.

        Raises InputError for what cannot be shared out evenly.
        """
        whole = {
            "heads of keys and values": config.num_key_value_heads,
            "heads of queries": config.num_attention_heads,
            "inner channels in its MLP": config.intermediate_size,
        }
        for what, n in whole.items():
            if n % self.size:
                raise InputError(
                    f"The model has {n} {what}, which {self.size} processes cannot share evenly; start a number of "
                    "processes that divides it."
                )
        n_kv_heads, n_heads, n_inner = (n // self.size for n in whole.values())
        return replace(config, num_key_value_heads=n_kv_heads, num_attention_heads=n_heads, intermediate_size=n_inner)

    def connect(self, model: CausalLM) -> CausalLM:
        """In a model of `share`, before its weights are loaded: share out the vocabulary, and add up what ranks compute."""
        own, tied = self.own(model.config.vocab_size), model.config.tie_word_embeddings
        model.model.embed_tokens = VocabularyEmbedding(own, model.model.embed_tokens)
        model.lm_head = VocabularyHead(own, model.lm_head)
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in SECOND:
                module.register_forward_hook(add_up)
                if not self.first:
                    module.bias = None  # else it would be added once for each rank
        return model

    def cuts(self, config: ModelConfig) -> dict[str, Cut]:
        """What this rank takes of each tensor of the whole model, by name; tensors that are not named it takes whole."""
        n_q, n_kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        packed = {"qkv_proj": (n_q, n_kv, n_kv), "gate_up_proj": (config.intermediate_size,) * 2}  # Phi-3's
        with torch.device("meta"):
            parameters = dict(build_model(config).named_parameters(remove_duplicate=False))
        cuts = {}
        for name, parameter in parameters.items():
            module, kind = name.split(".")[-2:]
            if module in FIRST or module in VOCABULARY:
                cuts[name] = self._cut(0, packed.get(module, (parameter.shape[0],)))
            elif module in SECOND and kind == "weight":
                cuts[name] = self._cut(1, (parameter.shape[1],))
            elif module in SECOND and not self.first:
                cuts[name] = Cut(0, parameter.shape[0], ())
        return cuts

    def _cut(self, dim: int, parts: Sequence[int]) -> Cut:
        ends = torch.tensor(parts).cumsum(0).tolist()
        own = [(end - part, self.own(part)) for end, part in zip(ends, parts, strict=True)]
        return Cut(dim, ends[-1], tuple(range(first + of.start, first + of.stop) for first, of in own))

    def session(self, model: CausalLM, capacity: int) -> Session:
        """A session on this rank's part of a model; see ParallelSession."""
        return ParallelSession(self, model, capacity)


def start(device: torch.device) -> Rank:
    """Join the processes that torchrun has started. `device` is this one's: a card of its own, or the CPU."""
    return Rank(*join(device))


# The layers ---------------------------------------------------------------------------------------------------------------


def add_up(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """After the second product of a block, which this rank computes for its own inputs only: the sum over all ranks."""
    return all_reduce(output)


class VocabularyEmbedding(nn.Module):
    """The vectors of this rank's own tokens, and zeros for the others, added up over the ranks."""

    def __init__(self, own: range, embedding: nn.Embedding):
        super().__init__()
        self.own, self.weight = own, nn.Parameter(embedding.weight.new_empty(len(own), embedding.embedding_dim))

    def forward(self, token_ids: Tensor) -> Tensor:
        is_own = (token_ids >= self.own.start) & (token_ids < self.own.stop)
        x = F.embedding((token_ids - self.own.start).where(is_own, 0), self.weight)
        return all_reduce(x.where(is_own.unsqueeze(-1), 0))


class VocabularyHead(nn.Module):
    """The logits of this rank's own tokens, put where they belong among zeros, and added up over the ranks."""

    def __init__(self, own: range, head: nn.Linear):
        super().__init__()
        self.own, self.vocab_size = own, head.out_features
        self.weight = nn.Parameter(head.weight.new_empty(len(own), head.in_features))

    def forward(self, x: Tensor) -> Tensor:
        logits = x.new_zeros(*x.shape[:-1], self.vocab_size)
        logits[..., self.own.start : self.own.stop] = F.linear(x, self.weight)
        return all_reduce(logits)


# The session --------------------------------------------------------------------------------------------------------------


class ParallelSession(Session):
    """A Session whose model and cache are a rank's part. Every rank makes the same calls, and gets the same results.

    A generator that is closed early must be closed at the same token on every rank.
    """

    def __init__(self, rank: Rank, model: CausalLM, capacity: int):
        super().__init__(model, capacity)
        self.rank = rank

    def probability(self, prompts: Rows, yes_ids: Sequence[int], no_ids: Sequence[int]) -> list[float]:
        return self.rank.agreed(super().probability(prompts, yes_ids, no_ids))

    def prefill_and_probability(self, *args: object) -> float:
        return self.rank.agreed(super().prefill_and_probability(*args))

    def _over_heads(self, sums: Tensor) -> Tensor:
        return all_reduce(sums)

    def _decode(
        self, logits: Tensor, context: KVCache | Branches, max_tokens: int, sampler: Sampler
    ) -> Iterator[list[int]]:
        return super()._decode(logits, context, max_tokens, lambda logits: self.rank.from_first(sampler(logits)))
