"""Trees laid into rows of one length, and batches of such rows made by worker processes.

A batch is a function of the seed and the number of the step alone. So a run that was interrupted goes on with the
batches that it would have had, and it does not matter how many workers make them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.document_maker import DocumentMaker, Lengths
from training.trees import Segment, Tree, TreeGrower

# What is known of each token of a row; the first dimension of a batch.
FIELDS = ("tokens", "targets", "kinds", "positions", "begin", "start", "cut")
TOKENS, TARGETS, KINDS_OF_TARGETS, POSITIONS, BEGIN, START, CUT = range(len(FIELDS))


def fill_rows(next_tree: Callable[[], Tree], n_rows: int, row_length: int) -> Tensor:
    """Rows full of trees, (len(FIELDS), n_rows, row_length) int32.

    As many trees are drawn as would fill the rows, and placed the largest first. What fits nowhere whole loses
    branches; no tree is split between rows, and no document or branch is cut short. What stays empty has kind NONE.
    """
    trees, drawn = [], 0
    while drawn < n_rows * row_length:
        tree = next_tree()
        trees.append(tree)
        drawn += min(tree.size, row_length)
    trees.sort(key=lambda tree: tree.size, reverse=True)
    batch = torch.zeros(len(FIELDS), n_rows, row_length, dtype=torch.int32)
    used = [0] * n_rows
    for tree in trees:
        row = next((row for row in range(n_rows) if used[row] + tree.size <= row_length), None)
        if row is None:
            row = min(range(n_rows), key=used.__getitem__)
            tree = _pruned(tree, row_length - used[row])
        if tree is not None:
            used[row] = _place(tree, batch[:, row], used[row])
    for row in range(n_rows):
        batch[BEGIN, row, used[row] :] = used[row]  # the rest is one more segment, so that each token sees something
    return batch


def _pruned(tree: Tree, room: int) -> Tree | None:
    """The tree with as many of its first groups as there is room for; None where that leaves nothing to ask."""
    room -= tree.document.size
    if room < 0:
        return None
    kept = []
    for group in tree.groups:
        room -= sum(branch.size for branch in group)
        if room < 0:
            break
        kept.append(group)
    return Tree(tree.document, kept) if kept or not tree.groups else None


def _place(tree: Tree, row: Tensor, at: int) -> int:
    """Write a tree into a row, (len(FIELDS), row_length), from `at` on. Returns where it ends."""
    start = at
    for segment in (tree.document, *(branch for group in tree.groups for branch in group)):
        at = _write(segment, row, at, start)
    return at


def _write(segment: Segment, row: Tensor, at: int, start: int) -> int:
    ids = torch.tensor(segment.ids, dtype=torch.int32)
    end = at + segment.size
    learnt = slice(at + segment.n_prompt - 1, at + len(ids) - 1)  # the tokens whose next token is learnt
    row[TOKENS, at:end] = ids[: segment.size]
    row[TARGETS, learnt] = ids[segment.n_prompt :]
    row[KINDS_OF_TARGETS, learnt] = segment.kind
    row[POSITIONS, at:end] = torch.arange(segment.cut, segment.cut + segment.size, dtype=torch.int32)
    row[BEGIN, at:end] = at
    row[START, at:end] = start
    row[CUT, at:end] = start + segment.cut  # an empty range where the cut is 0
    return end


class TreeSource:
    """Draws trees such that every bin of lengths gets its share of the tokens."""

    def __init__(self, maker: DocumentMaker, grower: TreeGrower, lengths: Lengths, n_trials: int = 40):
        self.maker, self.grower, self.lengths = maker, grower, lengths
        # A short document has branches many times its own length, so how large the trees of a bin are is tried out.
        rng = random.Random("sizes")
        self.weights = []
        for index, (_, _, share) in enumerate(lengths.bins):
            sizes = [self._grow(rng, index).size for _ in range(n_trials)]
            self.weights.append(share * n_trials / sum(sizes))

    def tree(self, rng: random.Random) -> Tree:
        return self._grow(rng, rng.choices(range(len(self.weights)), self.weights)[0])

    def _grow(self, rng: random.Random, index: int) -> Tree:
        return self.grower.grow(self.maker.make(rng, self.lengths.sample(rng, index)), rng)


class Batches(IterableDataset):
    """Batches from step `first` on, without end; see `fill_rows`. Worker w of W makes every W-th of them."""

    def __init__(self, source: TreeSource, n_rows: int, row_length: int, seed: int, first: int = 0):
        self.source, self.n_rows, self.row_length = source, n_rows, row_length
        self.seed, self.first = seed, first

    def batch(self, step: int) -> Tensor:
        """The batch of one step, (len(FIELDS), n_rows, row_length) int32."""
        rng = random.Random(f"{self.seed}-{step}")
        return fill_rows(lambda: self.source.tree(rng), self.n_rows, self.row_length)

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        step, n_workers = (self.first + worker.id, worker.num_workers) if worker else (self.first, 1)
        while True:
            yield self.batch(step)
            step += n_workers


def batch_loader(batches: Batches, n_workers: int, pin_memory: bool = False) -> DataLoader:
    """The batches in the order of their steps, made ahead by `n_workers` processes (0: by this one)."""
    # Forked workers share the books and the tokenizer with this process; nothing has to be sent to them.
    ahead = {"prefetch_factor": 2, "multiprocessing_context": "fork"} if n_workers else {}
    return DataLoader(batches, batch_size=None, num_workers=n_workers, pin_memory=pin_memory, **ahead)
