"""From the logits of a prompt to the tokens that follow it: sample, step, sample, step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from model.sampling import Sampler
from model.transformer import CausalLM, Context

Step = Callable[[Tensor], Tensor]  # token ids (rows,) -> logits of the next ones (rows, vocab_size)


def plain_step(model: CausalLM, context: Context) -> Step:
    """A forward pass of one token a row, which the context then holds."""
    return lambda tokens: model(tokens[:, None], context)[:, -1]


def decode(logits: Tensor, step: Step, max_tokens: int, sampler: Sampler, ahead: int = 0) -> Iterator[list[int]]:
    """Sample up to `max_tokens` tokens for each row; the last is not read. Yields the token ids of all rows, one by one.

    logits: after the prompts, (rows, vocab_size)
    ahead: how many more steps a device is given before the host looks at a token, so that it need not wait for the host:

        device    | step 1 | step 2 | step 3 | step 4 |
        host                                 look 1   look 2                 ahead = 2

    What was computed past a token that ends the reply is thrown away.
    """
    waiting: deque[_ToHost] = deque()
    tokens: Tensor | None = None
    for n_before in range(max_tokens):
        if n_before:
            logits = step(tokens)
        tokens = sampler(logits)  # (rows,)
        waiting.append(_ToHost(tokens))
        if len(waiting) > ahead:
            yield waiting.popleft().wait()
    for token_ids in waiting:
        yield token_ids.wait()


class _ToHost:
    """Token ids on their way to the host. `wait` waits for them, and not for what the device was given since."""

    def __init__(self, tokens: Tensor):
        if tokens.device.type != "cuda":
            self.host, self.arrived = tokens, None
            return
        self.host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True).copy_(tokens, non_blocking=True)
        self.arrived = torch.cuda.Event()
        self.arrived.record(torch.cuda.current_stream(tokens.device))

    def wait(self) -> list[int]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host.tolist()
