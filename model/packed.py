"""Pack: two token groups with caches of their own in one forward pass.

A short prompt alone cannot fill the matrix units, and reading all weights for it costs as much as for a thousand tokens.
Behind a chunk that is being prefilled anyway it rides along for nearly nothing: the linear layers see both groups side by
side, attention keeps them apart.

    tokens   [ chunk i + 1                        | verdict on margin i ]
    keys     the document's cache                 | the classifier's cache
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import PLAIN, AttentionOptions
from model.transformer import Context


class Packed:
    """A context (model/transformer.py) of two: the first `n_first` tokens belong to `first`, the others to `second`."""

    def __init__(self, first: Context, n_first: int, second: Context):
        self.first, self.n_first, self.second = first, n_first, second

    def positions(self, seq_len: int) -> Tensor:
        return torch.cat((self.first.positions(self.n_first), self.second.positions(seq_len - self.n_first)), dim=1)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = PLAIN) -> Tensor:
        sizes = (self.n_first, q.shape[2] - self.n_first)
        groups = zip(*(x.split(sizes, dim=2) for x in (q, k, v)), strict=True)
        caches = (self.first, self.second)
        return torch.cat([cache.attend(layer_idx, *qkv, options) for cache, qkv in zip(caches, groups, strict=True)], dim=2)

    def advance(self, seq_len: int) -> None:
        self.first.advance(self.n_first)
        self.second.advance(seq_len - self.n_first)
