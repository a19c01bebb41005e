"""Measure prefill, decode, memory and whole runs, next to the machine's ceilings and to transformers.

    python scripts/benchmark.py                              Llama-3.1-8B shapes on a GPU; the demo checkpoint on a CPU
    python scripts/benchmark.py --shapes qwen2-7b --json qwen2.json
    python scripts/benchmark.py --model FOLDER               a real checkpoint
    torchrun --nproc-per-node 2 scripts/benchmark.py         one model over two cards, without transformers

Weights are random unless --model is given: nothing is downloaded. Every margin is written at full length and judged
relevant, which is the dearest case. With transformers installed, its plain prompt and the published loop on its cache are
measured in the same process on the same weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import cli.start  # noqa: F401  (before torch)
import torch
from cli.options import Parser, exit_code, parse_window
from cli.ranks import join, leave
from cli.start import FIRST
from cli.weights_bar import WeightsBar
from evaluation.plot import check_plot
from transformers_baseline import TransformersBaseline

from model import CausalLM, InputError, KVCache, ModelConfig, count_bytes, empty_model
from model.config import WEIGHTS
from model.int8 import Int8Linear
from model.sampling import Sampler
from model.session import Session
from weights import Checkpoint
from weights.config import read_model_config
from weights.device import check_compile, free_bytes, peak_bytes, pick_dtype
from wim.budget import Plan, make_plan
from wim.chunks import Chunk, Sentence
from wim.events import Done, MarginToken
from wim.loop import WiM
from wim.prompts import Prompts
from wim.settings import Settings
from wim.verdict import Classifier

if TYPE_CHECKING:
    from model.parallel import Rank

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# The numbers of the published configurations that decide speed.
SHAPES = {
    "llama-3.1-8b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_ROPE,
        "rms_norm_eps": 1e-5,
    },
    "llama-3.1-70b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_ROPE,
        "rms_norm_eps": 1e-5,
    },
    "phi-3-mini": {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 131072,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
    },
    "qwen2-7b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
    },
}
GIB = 2**30
SENTENCE_TOKENS = 25  # of the random documents
CEILING_SIZES = {"cuda": (4 * GIB, 8192), "other": (GIB // 4, 1024)}  # bytes to copy, side of the matrices


class NumberTokenizer:
    """Stands in for a tokenizer when weights are random: a token's text is its number, so every token survives as text.

    Any other word becomes one token, so that the prompts have about the length that they have in English.
    """

    bos_id = None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, text: str, after: object = None) -> list[int]:
        return [int(word) if word.isdigit() else sum(word.encode()) % self.vocab_size for word in text.split()]

    def encode_with_offsets(self, text: str, after: object = None) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [word.span() for word in re.finditer(r"\S+", text)]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(f"{token_id} " for token_id in token_ids)

    def stream(self) -> SimpleNamespace:
        return SimpleNamespace(put=lambda token_id: f"{token_id} ", flush=lambda: "")


def random_plan(config: ModelConfig, settings: Settings, n_tokens: int) -> Plan:
    """Random tokens in chunks, and the project's own prompts. Raises InputError for what a context cannot hold."""
    if n_tokens > config.context_length:
        raise InputError(
            f"--tokens is {str(n_tokens)[:40]} and the model has {config.context_length} positions; give less."
        )
    tokenizer = NumberTokenizer(config.vocab_size)
    chat = SimpleNamespace(
        prompt_pieces=lambda system: ([1], "", [2]),
        reply_starts=lambda *choices: ([], [{tokenizer.encode(word)[0] for word in words} for words in choices]),
        stop_ids=frozenset(),
    )
    standin = SimpleNamespace(name="random weights", folder=None, config=config, tokenizer=tokenizer, chat=chat)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (n_tokens,), generator=generator).tolist()
    size = settings.chunk_tokens
    chunks = []
    for start in range(0, n_tokens, size):
        part = ids[start : start + size]
        text, end = tokenizer.decode(part), start + len(part)
        cuts = [*range(start, end, SENTENCE_TOKENS), end]
        sentences = tuple(Sentence(a, b, tokenizer.decode(ids[a:b])) for a, b in zip(cuts, cuts[1:], strict=False))
        chunks.append(Chunk(len(chunks), part, start, end, 0, 0, text, sentences))
    return make_plan(standin, "numbers", [QUERY], settings, Prompts(), standin, chunks=chunks)


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
        self.model.set_max_length(plan.longest)
        return self.session_of(max(plan.capacity, self.capacity))

    def session_of(self, capacity: int) -> Session:
        return Session(self.model, capacity) if self.rank is None else self.rank.session(self.model, capacity)

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


QUERY = "Which of the people in the story went to the market, and what did they buy there?"


def generate(session: Session, prompt: list[int], n_tokens: int) -> None:
    """Greedy tokens after what has been read, and back."""
    length = session.length
    list(session.generate(prompt, n_tokens, frozenset(), Sampler()))
    session.rollback(length)


def cold_start(bench: Bench) -> float:
    """Seconds from a loaded model to the second token after a chunk: what compiles, compiles here."""
    plan = bench.plan()
    session = bench.session(plan)
    return bench.seconds(partial(generate, session, plan.chunks[0].ids, 2))


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


def whole_run(bench: Bench, changes: dict[str, object], questions: int = 1) -> dict[str, float]:
    """One question, and perhaps another, through the loop itself."""
    gc.collect()  # caches of earlier runs should not count
    plan = bench.plan(**changes)
    session, classifier = bench.session(plan), None
    if plan.verdict_capacity:
        classifier = Classifier(bench.session_of(plan.verdict_capacity), plan.classifier_prompts)
    wim = WiM(plan, session, classifier)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first_token, results = None, []
    for _ in range(questions):
        bench.synchronize()
        start = time.perf_counter()
        for event in wim.ask(QUERY):
            if isinstance(event, MarginToken) and first_token is None:
                first_token = time.perf_counter() - start
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
        "second_question_s": results[1][0] if questions > 1 else None,
        "cache_gib": cache / GIB,
        "peak_over_weights_and_cache_gib": None if peak is None else (peak - bench.weight_bytes - cache) / GIB,
    }


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
    cache = capacity * KVCache.bytes_per_token(config if rank is None else rank.share(config), dtype)
    if free is not None and n_bytes + cache > free:
        raise InputError(
            f"The weights take {n_bytes / GIB:.1f} GiB, a cache of {capacity} positions {cache / GIB:.1f} GiB, and "
            f"{free / GIB:.1f} GiB are free on {device}; take a larger device, smaller shapes or fewer --tokens."
        )
    if checkpoint is not None:
        return checkpoint.load_model(device, dtype, config.max_position_embeddings, WeightsBar(), weights, rank)
    model = empty_model(config, dtype, weights, rank).to_empty(device=device).requires_grad_(False).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.quantise(torch.empty(module.weight.shape, dtype=dtype, device=device).normal_(0, 0.02))
    model.fuse_weights()
    return model


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--shapes", choices=list(SHAPES), default=None, help="random weights in these shapes")
    add("--layers", type=int, help="of the shapes, so many layers instead of all")
    add("--model", metavar="FOLDER_OR_ID", help="a real checkpoint instead")
    add("--tokens", type=int, help="of the document (default: 65536 on a GPU, 4096 elsewhere)")
    add("--chunk-tokens", type=int, help="default: 4096 on a GPU, 256 elsewhere")
    add("--margin-tokens", type=int, default=100)
    add("--answer-tokens", type=int, default=50)
    add("--windows", default="1,all", metavar="N,…,all", help="margin windows to run")
    add("--no-transformers", action="store_true", help="leave the comparison out")
    add("--plain-only", action="store_true", help="of transformers, run only the plain prompt")
    add("--device")
    add("--dtype")
    add("--weights", choices=WEIGHTS, default="float", help="int8: the layers' matrices rounded to 8 bits")
    add("--compile", action="store_true", help="compile the layers, for prefill and for decoding")
    add("--json", metavar="FILE", help="write everything there as well")
    add("--plot", metavar="FILE.png", help="draw seconds by phase (needs matplotlib)")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    device, rank = join(args.device)
    dtype, cuda = pick_dtype(args.dtype, device), device.type == "cuda"
    check_compile(args.compile, device)
    if not args.model and not args.shapes:
        args.shapes, args.model = ("llama-3.1-8b", None) if cuda else (None, "demo-llama")
    n_tokens = args.tokens if args.tokens is not None else (65536 if cuda else 4096)
    if args.json and not (Path(args.json).absolute().parent.is_dir() and not Path(args.json).is_dir()):
        raise InputError(f"--json {args.json} is a folder, or its folder does not exist; give a file's path.")
    if args.plot:
        check_plot(args.plot)
    if n_tokens < 1:
        raise InputError(f"--tokens is {n_tokens}; give at least 1.")
    settings = Settings(
        chunk_tokens=args.chunk_tokens if args.chunk_tokens is not None else (4096 if cuda else 256),
        margin_tokens=args.margin_tokens,
        answer_tokens=args.answer_tokens,
        threshold=0.0,  # every margin is relevant
        margins="written",
    )
    windows = {text: parse_window(text, "--windows") for text in args.windows.split(",")}
    to_run = {"llm": {"pattern": "llm"}, "underlined": {"margins": "underlined"}}
    to_run |= {f"wim, window {text}": {"margin_window": window} for text, window in windows.items()}
    checkpoint = Checkpoint.open(args.model) if args.model else None
    layers = {} if args.layers is None else {"num_hidden_layers": args.layers}
    published = (
        SHAPES[args.shapes] | layers if checkpoint is None else json.loads((checkpoint.folder / "config.json").read_text())
    )
    config = read_model_config(published) if checkpoint is None else checkpoint.config
    plans = [random_plan(config, replace(settings, **changes), n_tokens) for changes in to_run.values()]
    capacity = max(plan.capacity for plan in plans)
    model = load(checkpoint, config, capacity, device, dtype, args.weights, rank)
    if args.compile:
        model.compile_layers()
    bench = Bench(model, published, device, dtype, settings, n_tokens, capacity, rank)
    name = torch.cuda.get_device_name(device) if cuda else f"{platform.processor() or platform.machine()} CPU"
    results: dict = {
        "date": time.strftime("%Y-%m-%d"),
        "device": name,
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "processes": 1 if rank is None else rank.size,
        "weights": args.weights,
        "model": args.model or f"{args.shapes} (random weights, {config.num_hidden_layers} layers)",
        "weights_gib": bench.weight_bytes / GIB,
        "document_tokens": bench.n_tokens,
        "compiled": args.compile,
        "settings": vars(settings),
    }
    say(f"{results['model']} on {name}, {results['dtype']}, torch {torch.__version__}, {results['date']}")

    results["cold_first_tokens_s"] = cold_start(bench)
    say(f"first two tokens after a chunk, cold process: {results['cold_first_tokens_s']:.1f} s")

    results["ceilings"] = ceiling = ceilings(bench)
    say(f"ceilings: copy {ceiling['copy_tb_s']:.3g} TB/s, matmul {ceiling['matmul_tflop_s']:.3g} TFLOP/s")
    results["lengths"] = prefill_and_decode(bench, ceiling)
    say("\n| tokens | prefill s | of matmul rate | decode ms/token | TB/s | of copy rate |\n|---|---|---|---|---|---|")
    for row in results["lengths"][:-1]:
        say(
            f"| {row['tokens']} | {row['prefill_s']:.3f} | {row['prefill_share_of_matmul']:.0%} | {row['decode_ms']:.2f} "
            f"| {row['decode_tb_s']:.3g} | {row['decode_share_of_copy']:.0%} |"
        )
    say(f"rollback: {results['lengths'][-1]['rollback_us']:.2f} µs")

    runs = results["runs"] = {}
    for label, changes in to_run.items():
        whole_run(bench, changes)  # warms up; as theirs, at full length, for which cuDNN makes its plans
        runs[label] = whole_run(bench, changes, questions=1 if changes == {"margin_window": 1} else 2)
        say_run(label, runs[label])
    if rank is not None:
        rank.finish()
    if args.weights != "float" or rank is not None:
        args.no_transformers = True  # which cannot compute on these weights
    if not args.no_transformers and not find_spec("transformers"):
        say("transformers is not installed, so the comparison with it is left out: pip install -e '.[test]'")
    elif not args.no_transformers:
        import transformers

        results["transformers"] = transformers.__version__
        for label, seconds in baseline(bench, args.plain_only).items():
            runs[f"transformers {transformers.__version__}, {label}"] = seconds
            say_run(f"transformers, {label}", seconds)
        say_ratios(runs)
    if args.json and FIRST:
        Path(args.json).write_text(json.dumps(results, indent=1, default=str) + "\n")
    if args.plot and FIRST:
        plot(results, args.plot)


def say_run(label: str, run: dict[str, float]) -> None:
    phases = ("total", "prefill", "margins", "verdicts", "answer", "second_question")
    times = ", ".join(f"{phase} {run[f'{phase}_s']:.2f} s" for phase in phases if run.get(f"{phase}_s") is not None)
    extra = run.get("peak_over_weights_and_cache_gib")
    say(f"{label}: {times}" + (f", peak over weights and cache {extra:.2f} GiB" if extra is not None else ""))


def say_ratios(runs: dict[str, dict[str, float]]) -> None:
    """Each of our runs against our plain run and against transformers'."""
    others = {label: run["total_s"] for label, run in runs.items() if label == "llm" or label.startswith("transformers")}
    for label, run in runs.items():
        if not label.startswith("transformers"):
            ratios = (
                f"{run['total_s'] / total:.2f} times the seconds of {other}"
                for other, total in others.items()
                if other != label
            )
            say(f"{label}: {', '.join(ratios)}")


def plot(results: dict, path: str) -> None:
    """Seconds by phase, a bar for each run."""
    import matplotlib.pyplot as plt

    runs, phases = results["runs"], ("prefill", "margins", "verdicts", "answer")
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(runs) + 1.4), layout="constrained")
    left = [0.0] * len(runs)
    for phase in phases:
        widths = [run.get(f"{phase}_s") or 0.0 for run in runs.values()]
        axes.barh(list(runs), widths, left=left, label=phase)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds, {results['document_tokens']:,} tokens, {results['model']}, {results['device']}")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)


def say(line: str) -> None:
    print(line, flush=True)


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    leave(main)
