"""What is minimised, and the figures that tell how it goes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.transformer import CausalLM
from training.context import TreeContext
from training.trees import KINDS, NONE, TEXT

FIGURES = ("targets", "loss", "hits", "replies", "right")  # sums over the targets of one kind; see `objective`


def kind_weights(text_loss: float) -> list[float]:
    """What one target of each kind weighs: prompts and padding nothing, the document a little, replies 1."""
    weights = [1.0] * len(KINDS)
    weights[NONE], weights[TEXT] = 0.0, text_loss
    return weights


def objective(
    model: CausalLM,
    weights: Tensor,
    tokens: Tensor,
    targets: Tensor,
    kinds: Tensor,
    positions: Tensor,
    begin: Tensor,
    start: Tensor,
    cut: Tensor,
) -> tuple[Tensor, Tensor]:
    """The weighted mean cross-entropy of a batch of rows.

    weights: (len(KINDS),) float32; the others: (batch, T) int32, the fields of `rows.FIELDS`
    Returns the loss and, for each kind, `FIGURES`, (len(KINDS), 5) float32: how many targets, their summed
    cross-entropy, how many of them were the likeliest token; how many replies, and how many were right in every token.
    """
    context = TreeContext(positions, begin, start, cut)
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.device.type == "cuda"):
        logits = model(tokens, context, all_logits=True)  # (batch, T, vocab_size)
    nll = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().long(), reduction="none").view(targets.shape)
    weight = weights[kinds]
    loss = (nll * weight).sum() / weight.sum().clamp(min=1.0)
    with torch.no_grad():
        hits = logits.argmax(dim=-1) == targets
        reply = kinds > TEXT
        # Misses are counted at the place where a reply's segment begins, and looked up at the reply's last token.
        misses = torch.zeros_like(nll).scatter_add(1, begin.long(), (reply & ~hits).float())
        last = reply & (begin != F.pad(begin[:, 1:], (0, 1), value=-1))
        right = last & (misses.gather(1, begin.long()) == 0)
        member = kinds.unsqueeze(-1) == torch.arange(len(KINDS), device=kinds.device)  # (batch, T, len(KINDS))
        columns = (torch.ones_like(nll), nll.detach(), hits.float(), last.float(), right.float())
        figures = torch.stack([(member * column.unsqueeze(-1)).sum(dim=(0, 1)) for column in columns], dim=-1)
    return loss, figures


def report(figures: Tensor) -> str:
    """The figures in words: the loss of each kind, and of replies the share of tokens and of whole replies right."""
    parts = []
    for kind, (targets, loss, hits, replies, right) in zip(KINDS, figures.tolist(), strict=True):
        if kind == "none" or not targets:
            continue
        part = f"{kind} {loss / targets:.3f}"
        if replies:
            part += f" {hits / targets:.3f} {right / replies:.3f}"
        parts.append(part)
    return " | ".join(parts)
