"""The loop over another library: a session (wim/contracts.py) over a transformers model and its cache.

    model = AutoModelForCausalLM.from_pretrained(folder)
    wim = WiM(plan, TransformersSession(model), Classifier(TransformersSession(model), plan.classifier_prompts))

The plan is that of `wim.budget.make_plan`. There is no `branch` and no `attention`, so margins are written, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from model.sampling import Sampler, yes_probability


class TransformersSession:
    """Everything that a transformers model has read.

    logits_to_keep: of how many last positions a forward pass computes logits; 0 for all, as in the published loop
    """

    def __init__(self, model: PreTrainedModel, logits_to_keep: int = 1):
        self.model, self.logits_to_keep = model, logits_to_keep
        # Made without the model's configuration. With it, layers with a sliding window would drop the keys that leave it,
        # and a rollback needs them again.
        self.cache = DynamicCache()

    @property
    def length(self) -> int:
        return self.cache.get_seq_length()

    def rollback(self, length: int) -> None:
        self.cache.crop(length - self.length)  # by how many: later releases take no length

    def synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    @torch.inference_mode()
    def prefill(self, token_ids: Sequence[int]) -> Tensor:
        """Returns the logits of the last position, (1, vocab_size)."""
        tokens = torch.tensor([list(token_ids)], device=self.model.device)
        return self.model(tokens, past_key_values=self.cache, logits_to_keep=self.logits_to_keep).logits[:, -1]

    def generate(self, prompt: Sequence[int], max_tokens: int, stop_ids: frozenset[int], sampler: Sampler) -> Iterator[int]:
        unread = prompt
        for _ in range(max_tokens):
            token_id = sampler(self.prefill(unread)).item()
            if token_id in stop_ids:
                return
            yield token_id
            unread = [token_id]

    def probability(self, prompts: Sequence[Sequence[int]], yes_ids: Sequence[int], no_ids: Sequence[int]) -> list[float]:
        length, found = self.length, []
        for prompt in prompts:
            found.append(yes_probability(self.prefill(prompt), yes_ids, no_ids).item())
            self.rollback(length)
        return found
