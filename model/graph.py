"""A decode step as a CUDA graph: no host in the loop.

A decode step reads all weights and the whole cache to compute one token per row; everything else only stands in the way.
If Python launches its kernels one by one, a step of Llama-3.1-8B waits for the host most of the time. Here it is captured
once and replayed. It is the same forward pass as any other, `model(tokens, rows)`. The places of its rows are on the device
(model/kernels/flash_rows.py), so that the step itself can move them.

By default the graph is made of PyTorch's ordinary kernels: capturing it takes well under a second, and no compiler is
imported. After `CausalLM.compile_layers` each layer is compiled before it is captured (model/kernels/flex_rows.py). A step
then has fewer kernels and is faster (on an H200, 4.5 ms instead of 9.0 for Llama-3.1-8B after 4,096 tokens), but the first
one comes seconds later.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.branch import Branches
from model.cache import KVCache
from model.decode import Step, decode
from model.kernels.flash_rows import DeviceRows, FlashRows, Places
from model.sampling import Sampler
from model.transformer import CausalLM

CAPTURE_BYTES = 2**28  # more than the intermediate results of a step take
MAX_ROWS = 64  # of one graph
AHEAD = 3  # steps that the device is given before the host looks at a token


class GraphSteps:
    """The captured steps over one cache, by number of rows."""

    def __init__(self, model: CausalLM, cache: KVCache):
        self.model, self.cache = model, cache
        self.decoders: dict[tuple[int, int, bool], GraphDecoder] = {}  # by rows, index of the first row, compiled

    def decode(self, logits: Tensor, context: KVCache | Branches, max_tokens: int, sampler: Sampler) -> Iterator[list[int]]:
        """As model.decode.decode, by captured steps, and ahead of the host.

        The graph moves its rows on the device. The context's own pointer follows as tokens are taken, so it covers what a
        plain decoder would have read. What was computed ahead lies above it, where everything is free.
        """
        step = self.begin(context, max_tokens - 1)
        for n_before, token_ids in enumerate(decode(logits, step, max_tokens, sampler, AHEAD)):
            if n_before:
                context.advance(1)
            yield token_ids

    def begin(self, context: KVCache | Branches, n_tokens: int) -> Step:
        """The step that continues a context by up to `n_tokens` tokens; the context itself stays as it is.

        More rows than a graph takes are shared out among several. Raises ValueError when they do not fit into the cache.
        """
        length, compiled = self.cache.length, self.model.compiled
        places = context.places() if isinstance(context, Branches) else Places([length], [length], [length])
        size, decoders = self._max_rows(), []
        for first in range(0, len(places.ends), size):
            part = Places(*(values[first : first + size] for values in places))
            rows = 1 << (len(part.ends) - 1).bit_length()  # powers of two: few graphs to capture
            key = (rows, first, compiled)
            if key not in self.decoders:
                self.decoders[key] = GraphDecoder(self.model, self._rows(rows))
            decoders.append(self.decoders[key])
            decoders[-1].begin(part, n_tokens)

        def step(tokens: Tensor) -> Tensor:
            logits = [decoder(part) for decoder, part in zip(decoders, tokens.split(size), strict=True)]
            return logits[0] if len(logits) == 1 else torch.cat(logits)

        return step

    def _max_rows(self) -> int:
        if not self.model.compiled:
            return MAX_ROWS
        from model.kernels.flex_rows import max_rows  # loads the compiler

        return max_rows(self.model.config)

    def _rows(self, rows: int) -> DeviceRows:
        config = self.model.config
        if not self.model.compiled:
            group = config.num_attention_heads // config.num_key_value_heads
            return FlashRows(self.cache, rows, group, set(config.sliding_windows) - {None})
        from model.kernels.flex_rows import FlexRows

        return FlexRows(self.cache, rows, config)


class GraphDecoder:
    """One step of some rows, captured at the first call."""

    def __init__(self, model: CausalLM, rows: DeviceRows):
        self.model, self.rows, self.device, self.n_begun = model, rows, rows.device, len(rows.slots)
        self.tokens = torch.zeros(self.n_begun, 1, dtype=torch.int64, device=rows.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # (rows, vocab_size), where the graph writes them

    def begin(self, places: Places, n_tokens: int) -> None:
        """See DeviceRows.begin."""
        self.n_begun = len(places.ends)
        self.rows.begin(places, n_tokens)

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: (rows begun,) int64. Returns logits of the next ones, (rows begun, vocab_size), until the next call."""
        self.tokens[: self.n_begun, 0] = tokens
        self.tokens[self.n_begun :, 0] = tokens[0]
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.logits[: self.n_begun]

    def _step(self) -> Tensor:
        return self.model(self.tokens, self.rows, run=self.rows.run_layer)[:, -1]

    def _capture(self) -> None:
        # By hand, as torch.cuda.graph would give back all memory that is kept for later. Each capture has its own stream,
        # because libraries keep a workspace for each stream, and a graph goes on using it.
        slots, graph, stream = self.rows.slots.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            # This compiles, if layers are to be compiled, and lets libraries allocate what a capture must not. The first
            # replay stores the same keys and values anew.
            self._step()
            self.rows.slots.copy_(slots)
            if torch.cuda.mem_get_info(self.device)[0] < CAPTURE_BYTES:
                torch.cuda.empty_cache()  # waits for the device; a capture cannot take back what is only kept for later
            # Other threads, such as those that watch over exchanges between cards, may ask the device something meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.logits = self._step()
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        self.graph = graph
