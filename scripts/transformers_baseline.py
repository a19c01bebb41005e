"""What people would use instead: transformers, for scripts/benchmark.py.

Two runs on the same weights: the plain prompt (the whole document and the question at once), and Writing in the Margins as
its authors published it (github.com/writer/writing-in-the-margins, run.py and wim.py), written anew for the cache of
transformers 5: one DynamicCache that is cropped after each margin, logits of every chunk's every position, a verdict
generated token by token on a second cache.
"""

from __future__ import annotations

import time
from collections import Counter

import torch

from model.transformer import CausalLM


class TransformersBaseline:
    """A transformers model that shares the parameters of one of ours.

    config: the published config.json, as a dictionary
    """

    def __init__(self, model: CausalLM, config: dict):
        from transformers import AutoConfig, AutoModelForCausalLM

        weight = model.lm_head.weight
        self.device = weight.device
        hf_config = AutoConfig.for_model(**config)
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(hf_config, dtype=weight.dtype)
        self.model.load_state_dict(model.state_dict(), strict=False, assign=True)
        self.model.tie_weights()
        # Frequencies are buffers that no checkpoint holds: made again, off the meta device.
        self.model.model.rotary_emb = type(self.model.model.rotary_emb)(hf_config).to(self.device)
        self.model.eval()

    @torch.inference_mode()
    def plain(self, token_ids: list[int], answer_tokens: int) -> dict[str, float]:
        """The whole prompt at once, then a greedy answer. Returns seconds by phase."""
        from transformers import DynamicCache

        seconds: Counter[str] = Counter()
        cache = DynamicCache(config=self.model.config)
        start = self._clock()
        logits = self._forward(token_ids, cache, logits_to_keep=1)
        seconds["prefill"] = self._clock() - start
        start = self._clock()
        self._generate(logits, cache, answer_tokens)
        seconds["answer"] = self._clock() - start
        return dict(seconds)

    @torch.inference_mode()
    def published_loop(
        self,
        header: list[int],
        chunks: list[list[int]],
        margin_prompt: list[int],
        verdict_prompt: list[int],
        final_prompt: list[int],
        margin_tokens: int,
        verdict_tokens: int,
        answer_tokens: int,
    ) -> dict[str, float]:
        """The published loop over chunks, each margin at full length and taken as relevant. Returns seconds by phase."""
        from transformers import DynamicCache

        seconds: Counter[str] = Counter()
        cache, judge = DynamicCache(config=self.model.config), DynamicCache(config=self.model.config)
        self._forward(header, cache)
        margins: list[int] = []
        for chunk in chunks:
            start = self._clock()
            self._forward(chunk, cache)
            seconds["prefill"] += self._clock() - start

            length = cache.get_seq_length()
            start = self._clock()
            margin = self._generate(self._forward(margin_prompt, cache), cache, margin_tokens)
            cache.crop(length - cache.get_seq_length())  # by how many: later releases take no length
            seconds["margins"] += self._clock() - start

            start = self._clock()
            self._generate(self._forward(verdict_prompt + margin, judge), judge, verdict_tokens)
            judge = DynamicCache(config=self.model.config)
            seconds["verdicts"] += self._clock() - start
            margins += margin
        start = self._clock()
        self._generate(self._forward(margins + final_prompt, cache), cache, answer_tokens)
        seconds["answer"] = self._clock() - start
        return dict(seconds)

    def _forward(self, token_ids: list[int], cache: object, **options: int) -> torch.Tensor:
        tokens = torch.tensor([token_ids], device=self.device)
        return self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **options).logits[:, -1]

    def _generate(self, logits: torch.Tensor, cache: object, n_tokens: int) -> list[int]:
        token_ids = []
        for step in range(n_tokens):
            token_ids.append(logits.argmax(-1).item())  # as published: each token is looked at, for the end of the reply
            if step + 1 < n_tokens:
                logits = self._forward(token_ids[-1:], cache)
        return token_ids

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
