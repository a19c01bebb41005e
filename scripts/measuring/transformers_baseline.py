"""What people would use instead: transformers, for scripts/benchmark.py.

Two runs on the same weights: the plain prompt (the whole document and the question at once), and Writing in the Margins as
its authors published it (github.com/writer/writing-in-the-margins, run.py and wim.py), written anew for transformers 5:
one cache that is cropped after each margin (scripts/transformers_session.py), logits of every chunk's every position, a
verdict generated token by token on a second cache.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from model.sampling import Sampler
from model.transformer import CausalLM

if TYPE_CHECKING:
    from transformers_session import TransformersSession


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

    def plain(self, token_ids: list[int], answer_tokens: int) -> dict[str, float]:
        """The whole prompt at once, then a greedy answer. Returns seconds by phase."""
        seconds: Counter[str] = Counter()
        tokens = self._session(logits_to_keep=1).generate(token_ids, answer_tokens, frozenset(), Sampler())
        with self._timed(seconds, "prefill"):
            next(tokens)
        with self._timed(seconds, "answer"):
            list(tokens)
        return dict(seconds)

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
        seconds: Counter[str] = Counter()
        session, margins = self._session(), []
        session.prefill(header)
        for chunk in chunks:
            with self._timed(seconds, "prefill"):
                session.prefill(chunk)
            length = session.length
            with self._timed(seconds, "margins"):
                margin = self._reply(session, margin_prompt, margin_tokens)
                session.rollback(length)
            with self._timed(seconds, "verdicts"):
                self._reply(self._session(), verdict_prompt + margin, verdict_tokens)
            margins += margin
        with self._timed(seconds, "answer"):
            self._reply(session, margins + final_prompt, answer_tokens)
        return dict(seconds)

    def _session(self, logits_to_keep: int = 0) -> TransformersSession:
        from transformers_session import TransformersSession  # loads transformers, which takes seconds

        return TransformersSession(self.model, logits_to_keep)

    def _reply(self, session: TransformersSession, prompt: list[int], n_tokens: int) -> list[int]:
        return list(session.generate(prompt, n_tokens, frozenset(), Sampler()))

    @contextmanager
    def _timed(self, seconds: Counter[str], phase: str) -> Iterator[None]:
        start = self._clock()
        yield
        seconds[phase] += self._clock() - start

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
