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
lockstep, and what a host decides by (tokens, probabilities, masses of attention) is rank 0's, or the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.decode import RowsContext
from model.errors import InputError
from model.families import build_model
from model.sampling import Sampler
from model.session import Rows, Session
from model.transformer import CausalLM

FIRST = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")  # cut by outputs
SECOND = ("o_proj", "down_proj")  # cut by inputs
VOCABULARY = ("embed_tokens", "lm_head")
TIMEOUT = timedelta(minutes=10)  # that a rank waits for the others in one exchange


class Cut(NamedTuple):
    """What a rank takes of a tensor: some ranges along one dimension.

    dim, size: that dimension, and how long it is in the whole tensor
    """

    dim: int
    size: int
    ranges: tuple[range, ...]


@dataclass(frozen=True)
class Rank:
    """One of `size` processes that share a model; `index` counts from 0."""

    index: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, and that talks to a person."""
        return self.index == 0

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

    def build(self, config: ModelConfig) -> CausalLM:
        """This rank's part of the model, with uninitialised weights on the current default device."""
        model = build_model(self.share(config))
        own = self.own(config.vocab_size)
        model.model.embed_tokens = VocabularyEmbedding(own, model.model.embed_tokens)
        model.lm_head = VocabularyHead(own, model.lm_head)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        for module in list(model.modules()):
            for name, second in module.named_children():
                if name in SECOND:
                    setattr(module, name, RowParallel(second))
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
            elif module in SECOND and kind == "weight":  # its bias is added after the sum
                cuts[name] = self._cut(1, (parameter.shape[1],))
        return cuts

    def _cut(self, dim: int, parts: Sequence[int]) -> Cut:
        ends = torch.tensor(parts).cumsum(0).tolist()
        own = [(end - part, self.own(part)) for end, part in zip(ends, parts, strict=True)]
        return Cut(dim, ends[-1], tuple(range(first + of.start, first + of.stop) for first, of in own))

    def session(self, model: CausalLM, capacity: int) -> Session:
        """A session on a model from `build`; see ParallelSession."""
        return ParallelSession(self, model, capacity)

    def own(self, n: int) -> range:
        """Which of n things are this rank's. The last rank has fewer where they are not divided evenly."""
        most = -(-n // self.size)
        return range(min(n, self.index * most), min(n, (self.index + 1) * most))

    def from_first(self, values: Tensor) -> Tensor:
        """The same tensor, with the values that it has on rank 0. The host does not wait."""
        dist.broadcast(values, 0)
        return values

    def agreed(self, value: object) -> object:
        """What rank 0 gives here, on every rank; anything that can be pickled."""
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def finish(self) -> None:
        """Wait until all ranks have come so far, and their devices too."""
        dist.barrier()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def least(self, number: int) -> int:
        """The least of what the ranks give."""
        numbers: list[int] = [0] * self.size
        dist.all_gather_object(numbers, number)
        return min(numbers)


def start(device: torch.device) -> Rank:
    """Join the processes that torchrun has started. `device` is this one's: a card of its own, or the CPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    return Rank(dist.get_rank(), dist.get_world_size())


# The layers ---------------------------------------------------------------------------------------------------------------


def all_reduce(x: Tensor) -> Tensor:
    """The same tensor, which then holds the sum over all ranks."""
    if torch.compiler.is_compiling():
        _all_reduce(x)
    else:
        dist.all_reduce(x)
    return x


# For the compiler an operator without an inside.
@torch.library.custom_op("writing_in_the_margins::all_reduce", mutates_args=("x",))
def _all_reduce(x: Tensor) -> None:
    dist.all_reduce(x)


@_all_reduce.register_fake
def _(x: Tensor) -> None:
    return None


class RowParallel(nn.Module):
    """The second product of a block: this rank's inputs only, then the sum over all ranks, then the bias, once."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out = all_reduce(F.linear(x, self.weight))
        return out if self.bias is None else out + self.bias


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
        return whole(F.linear(x, self.weight), self.own, self.vocab_size, -1)


def whole(part: Tensor, own: range, size: int, dim: int) -> Tensor:
    """A tensor of which each rank has its own part along `dim`, where the whole has `size`."""
    shape = list(part.shape)
    shape[dim] = size
    result = part.new_zeros(shape)
    result.narrow(dim, own.start, len(own)).copy_(part)
    return all_reduce(result)


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

    @torch.inference_mode()
    def attention(self, ends: Sequence[int], prompts: Rows, watched: Sequence[range], borders: Rows) -> list[Tensor]:
        parts = super().attention(ends, prompts, watched, borders)  # of this rank's heads
        own = torch.cat(parts, dim=-1).to(self.device)
        n_heads = own.shape[1] * self.rank.size
        masses = whole(own, self.rank.own(n_heads), n_heads, 1).cpu()
        return list(masses.split([part.shape[-1] for part in parts], dim=-1))

    def _decode(self, logits: Tensor, context: RowsContext, max_tokens: int, sampler: Sampler) -> Iterator[list[int]]:
        return super()._decode(logits, context, max_tokens, lambda logits: self.rank.from_first(sampler(logits)))
