"""Seconds and memory of a model at work."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from cli.weights_bar import WeightsBar

from measuring.random_document import QUERY, random_plan
from measuring.transformers_baseline import TransformersBaseline
from model import CausalLM, InputError, KVCache, ModelConfig, count_bytes, empty_model
from model.int8 import Int8Linear
from model.sampling import Sampler
from model.session import Session
from weights import Checkpoint
from weights.device import free_bytes, peak_bytes
from weights.sessions import session_on, share
from wim.budget import Plan
from wim.events import ChunkRead, Done, MarginDone, MarginToken
from wim.loop import WiM
from wim.settings import Settings
from wim.verdict import Classifier

if TYPE_CHECKING:
    from model.parallel import Rank

GIB = 2**30
CEILING_SIZES = {"cuda": (4 * GIB, 8192), "other": (GIB // 4, 1024)}  # bytes to copy, side of the matrices


@dataclass
class Bench:
    """What all measurements need."""

    model: CausalLM
    config: dict  # config.json
    device: torch.device
    dtype: torch.dtype
    settings: Settings
    n_tokens: int  # of the document
    capacity: int = 0  # of all caches, at least: cuDNN plans its attention anew for each size of cache, which takes 0.3 s
    rank: Rank | None = None  # of several processes that share the model

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that a decode step reads: all but the embedding, of which it needs a row."""
        embedding = self.model.model.embed_tokens.weight
        tied = self.model.lm_head.weight is embedding
        return self.weight_bytes - (0 if tied else embedding.nbytes)

    def plan(self, **changes: object) -> Plan:
        """changes: of the settings"""
        return random_plan(self.model.config, replace(self.settings, **changes), self.n_tokens)

    def session(self, plan: Plan) -> Session:
        self.model.set_max_length(plan.max_length)
        return session_on(self.model, max(plan.capacity, self.capacity), self.rank)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 1) -> float:
        """The median of some runs, the device waited for."""
        times = []
        for _ in range(repeats):
            self.synchronize()
            start = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def generate(session: Session, prompt: list[int], n_tokens: int) -> None:
    """Greedy tokens after what has been read, and back."""
    length = session.length
    list(session.generate(prompt, n_tokens, frozenset(), Sampler()))
    session.rollback(length)


@torch.inference_mode()
def cold_start(bench: Bench) -> float:
    """Seconds from a loaded model to the second token after a chunk: what compiles, compiles here."""
    plan = bench.plan()
    session = bench.session(plan)
    return bench.seconds(partial(generate, session, plan.chunks[0].ids, 2))


@torch.inference_mode()
def ceilings(bench: Bench) -> dict[str, float]:
    """The copy bandwidth (read and written bytes, TB/s) and the matmul rate (TFLOP/s) of this device."""
    n_bytes, n = CEILING_SIZES["cuda" if bench.device.type == "cuda" else "other"]
    source = torch.ones(n_bytes // bench.dtype.itemsize, dtype=bench.dtype, device=bench.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, device=bench.device).to(bench.dtype) for _ in range(2))
    for _ in range(3):
        target.copy_(source), a @ b
    copy = bench.seconds(lambda: target.copy_(source), repeats=10)
    matmul = bench.seconds(lambda: a @ b, repeats=10)
    return {"copy_tb_s": 2 * n_bytes / copy / 1e12, "matmul_tflop_s": 2 * n**3 / matmul / 1e12}


@torch.inference_mode()
def prefill_and_decode(bench: Bench, ceiling: dict[str, float]) -> list[dict[str, float]]:
    """Chunk by chunk, and some tokens decoded at several lengths on the way."""
    config, plan = bench.model.config, bench.plan()
    session, steps, rows = bench.session(plan), 32, []
    at = {2**i * 4096 for i in range(10)} | {plan.chunks[-1].end, plan.chunks[0].end}
    prefill, flops = 0.0, 0.0
    linear = sum(p.numel() for name, p in bench.model.named_parameters() if "layers" in name and p.dim() == 2)
    for chunk in plan.chunks:
        prefill += bench.seconds(lambda chunk=chunk: session.prefill(chunk.ids))
        n, before = len(chunk.ids), session.length - len(chunk.ids)
        heads = config.num_attention_heads * config.head_dim * config.num_hidden_layers
        flops += 2 * linear * n + 4 * heads * n * (before + n / 2)
        if session.length in at:
            length = session.length
            generate(session, [5], 3)  # warms up
            # One token is read with the prompt, so two lengths and their difference leave only the steps.
            short, long = (bench.seconds(partial(generate, session, [5], 1 + n)) for n in (0, steps))
            per_token = (long - short) / steps
            n_bytes = bench.read_bytes + length * KVCache.bytes_per_token(config, bench.dtype)
            rows.append(
                {
                    "tokens": length,
                    "prefill_s": prefill,
                    "prefill_share_of_matmul": flops / prefill / 1e12 / ceiling["matmul_tflop_s"],
                    "decode_ms": per_token * 1e3,
                    "decode_tb_s": n_bytes / per_token / 1e12,
                    "decode_share_of_copy": n_bytes / per_token / 1e12 / ceiling["copy_tb_s"],
                }
            )
    start = time.perf_counter()
    for _ in range(1000):
        session.cache.advance(1)
        session.rollback(length)
    rows.append({"rollback_us": (time.perf_counter() - start) * 1e3})
    return rows


@torch.inference_mode()
def whole_run(bench: Bench, changes: dict[str, object], questions: int = 1) -> dict[str, float]:
    """One question, and perhaps another, through the loop itself."""
    gc.collect()  # caches of earlier runs should not count
    plan = bench.plan(**changes)
    session, classifier = bench.session(plan), None
    if plan.verdict_capacity:
        classifier = Classifier(session_on(bench.model, plan.verdict_capacity, bench.rank), plan.classifier_prompts)
    wim = WiM(plan, session, classifier)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first_token, first_margin, read, read_then, results = None, None, 0, None, []
    for _ in range(questions):
        bench.synchronize()
        start = time.perf_counter()
        for event in wim.ask(QUERY):
            if isinstance(event, ChunkRead):
                read += event.tokens
            if isinstance(event, MarginToken) and first_token is None:
                first_token = time.perf_counter() - start
            if isinstance(event, MarginDone) and first_margin is None:
                first_margin, read_then = time.perf_counter() - start, read / bench.n_tokens
        bench.synchronize()
        assert isinstance(event, Done)
        results.append((time.perf_counter() - start, event))
    first, done = results[0]
    cache = session.cache.nbytes + (classifier.session.cache.nbytes if classifier else 0)
    peak = peak_bytes(bench.device)
    return {
        "total_s": first,
        **{f"{phase}_s": seconds for phase, seconds in done.seconds.items()},
        "first_margin_token_s": first_token,
        "first_margin_s": first_margin,  # until it is complete, and judged
        "share_read_at_first_margin": read_then,
        "second_question_s": results[1][0] if questions > 1 else None,
        "cache_gib": cache / GIB,
        "peak_over_weights_and_cache_gib": None if peak is None else (peak - bench.weight_bytes - cache) / GIB,
    }


@torch.inference_mode()
def baseline(bench: Bench, plain_only: bool) -> dict[str, dict[str, float]]:
    """transformers on the same weights and token ids."""
    plan, theirs = bench.plan(), TransformersBaseline(bench.model, bench.config)
    ids = [token_id for chunk in plan.chunks for token_id in chunk.ids]
    prompt = plan.prompts.header + ids + plan.prompts.answer(QUERY)
    theirs.plain(prompt, 4)  # warms up
    results = {"plain": theirs.plain(prompt, bench.settings.answer_tokens)}
    if not plain_only:
        results["published_loop"] = theirs.published_loop(
            plan.prompts.header,
            [chunk.ids for chunk in plan.chunks],
            plan.prompts.margin(QUERY, plan.chunks[0].beginning),
            plan.classifier_prompts.chat_header + plan.classifier_prompts.verdict(QUERY, ""),
            plan.prompts.answer_with_margins(QUERY, []),
            bench.settings.margin_tokens,
            10,
            bench.settings.answer_tokens,
        )
    for seconds in results.values():
        seconds["total"] = sum(seconds.values())
    return {name: {f"{phase}_s": value for phase, value in seconds.items()} for name, seconds in results.items()}


@torch.inference_mode()
def load(
    checkpoint: Checkpoint | None,
    config: ModelConfig,
    capacity: int,
    device: torch.device,
    dtype: torch.dtype,
    weights: str,
    rank: Rank | None = None,
) -> CausalLM:
    """The model of a checkpoint, or one with random weights. Raises InputError where it has no room beside its cache.

    rank: its part only
    """
    n_bytes, free = count_bytes(config, dtype, weights, rank), free_bytes(device)
    cache = capacity * KVCache.bytes_per_token(share(config, rank), dtype)
    if free is not None and n_bytes + cache > free:
        raise InputError(
            f"The weights take {n_bytes / GIB:.1f} GiB, a cache of {capacity} positions {cache / GIB:.1f} GiB, and "
            f"{free / GIB:.1f} GiB are free on {device}; take a larger device, smaller shapes or fewer --tokens."
        )
    if checkpoint is not None:
        return checkpoint.load_model(device, dtype, config.max_position_embeddings, WeightsBar.on_terminal(), weights, rank)
    model = empty_model(config, dtype, weights, rank).allocate(device).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.quantise(torch.empty(module.weight.shape, dtype=dtype, device=device).normal_(0, 0.02))
    return model
