"""A session of training: from the script's arguments to a folder, with all that is checked before."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from model import InputError, ModelConfig, build_model, count_parameters
from training.choices import FAMILIES, OPTIMIZERS, SIZES
from training.corpus import make_source, tokenizer_texts, training_text
from training.document_maker import Lengths
from training.folder import (
    copy_tokenizer,
    make_config,
    make_folder,
    read_weights,
    tokenizer_fingerprint,
    write_config,
    write_tokenizer,
    write_weights,
    write_wishes,
)
from training.objective import report
from training.optimizer import initialise, lr_factor, make_optimizers
from training.rows import Batches, batch_loader
from training.trainer import Run, make_loss
from weights.config import read_model_config
from weights.device import free_bytes, pick_device
from weights.hub import resolve

MOST_WORKERS = 1024
UNTIMED_STEPS = 3  # the first ones of a session compile; they do not count as time


def check(args: argparse.Namespace, lengths: Lengths) -> None:
    """Raises InputError for arguments that cannot work."""
    for name, value in vars(args).items():
        if isinstance(value, int | float) and not 0 <= value < 2**63:
            raise InputError(f"--{name.replace('_', '-')} is {value}; give a number from 0 up, and below 2^63.")
    if args.family not in FAMILIES:
        raise InputError(f"There is no family {args.family!r}; choose among {', '.join(FAMILIES)}.")
    if args.optimizer not in OPTIMIZERS:
        raise InputError(f"There is no optimizer {args.optimizer!r}; choose among {', '.join(OPTIMIZERS)}.")
    if (args.minutes is None) == (args.steps is None) or (args.minutes or args.steps or 0) <= 0:
        raise InputError("Say how long to train: give either --minutes or --steps, and more than zero.")
    if args.row % 128 or args.row <= 0 or args.batch < 1:
        raise InputError(f"--row is {args.row} and --batch {args.batch}; give a multiple of 128 and at least 1.")
    if args.workers > MOST_WORKERS:
        raise InputError(f"--workers is {args.workers}; give at most {MOST_WORKERS:,}.")
    longest = max(most for _, most, _ in lengths.bins)
    if longest > args.row - 128:
        raise InputError(f"--lengths go up to {longest} tokens, which --row {args.row} cannot hold with 128 to spare.")
    saved = args.state.exists()
    if saved and not args.state.is_file():
        raise InputError(f"--state {args.state} is no file; give the name of one.")
    if saved and not args.resume:
        raise InputError(f"{args.state} holds the state of a run; go on with --resume, or remove it to start anew.")
    if not saved and (weights := sorted(path for path in args.out.glob("*") if path.suffix in (".safetensors", ".bin"))):
        raise InputError(f"--out {args.out} holds a checkpoint already ({weights[0].name}); give another folder.")


def check_memory(args: argparse.Namespace, config: ModelConfig, device: torch.device) -> None:
    """Raises InputError for a run that needs more memory than is free, whatever else it takes."""
    parameters = 4 * 3 * count_parameters(config)  # weights, gradients and at least one moment, in float32
    step = args.batch * args.row * (8 + 4 * config.hidden_size)  # token ids, and one hidden state of each
    if (free := free_bytes(device)) is not None and parameters + step > free:
        raise InputError(
            f"The run needs at least {parameters / 2**30:,.1f} GiB for parameters and {step / 2**30:,.1f} GiB for a step; "
            f"{device} has {free / 2**30:.1f} GiB free: give a smaller --size, --batch or --row."
        )


def sizes_of(changes: list[str]) -> dict[str, Any]:
    """The sizes of config.json with some changed, each given as NAME=NUMBER."""
    sizes = dict(SIZES)
    for change in changes:
        name, _, number = change.partition("=")
        try:
            value = float(number)
            if not math.isfinite(value):
                raise ValueError
            sizes[name] = type(sizes[name])(value)
        except (KeyError, ValueError):
            names = ", ".join(SIZES)
            raise InputError(f"--size {change!r} is not NAME=NUMBER, a finite number and a name of {names}.") from None
    return sizes


def train(args: argparse.Namespace) -> None:
    """The whole run, from arguments to a folder.

    Raises InputError for what cannot be used; a checkpoint that is there already is then as it was.
    """
    lengths, sizes = Lengths.parse(args.lengths), sizes_of(args.size)
    check(args, lengths)
    device = pick_device(args.device)
    books = training_text(args.text, args.hold_out)
    resume = args.state.exists()  # without --resume, `check` has refused that
    start_from = resolve(args.start_from) if args.start_from and not resume else None

    config = read_model_config(make_config(args.family, sizes))
    check_memory(args, config, device)
    model = build_model(config)
    if start_from is not None:
        read_weights(model, start_from)
    else:
        initialise(model, args.seed)
    model.to(device)
    optimizers = make_optimizers(model, args.optimizer, args.lr, fused=device.type == "cuda")
    run = Run(model, optimizers, {"family": args.family, "sizes": sizes, "optimizer": args.optimizer})
    if resume:
        if (tokenizer := tokenizer_fingerprint(args.out)) is not None:
            run.recipe["tokenizer"] = tokenizer
        run.load(args.state)
        if tokenizer is None:
            raise InputError(
                f"The run of {args.state} has its tokenizer in its own --out, and --out {args.out} has none; give that one."
            )
    elif args.resume:
        say(f"There is no state at {args.state} to go on from; a new run begins.")

    for folder in (args.state.parent, args.out):
        make_folder(folder)  # the first that is written; a start or a state has been read whole
    if start_from is None and not resume:
        write_tokenizer(args.family, args.out, tokenizer_texts(books, args.seed), sizes["vocab_size"])
    source = make_source(start_from or args.out, books, lengths, question_lengths_max=args.question_lengths_max)
    if start_from is not None:
        copy_tokenizer(start_from, args.out)
    write_config(args.family, args.out, sizes)
    run.recipe["tokenizer"] = tokenizer_fingerprint(args.out)
    write_wishes(start_from or args.out, args.out)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{args.family}: {n_parameters:,} parameters; a step is {args.batch} rows of {args.row} tokens.")
    if resume:
        say(f"Going on from step {run.step}, after {run.elapsed:.0f} s.")

    batches = Batches(source, args.batch, args.row, args.seed, first=run.step)
    loop(args, run, batch_loader(batches, args.workers, pin_memory=device.type == "cuda"), device)
    if args.state == args.out / "training.pt":
        args.state.unlink(missing_ok=True)  # the run is over, and the folder is to be published
    say(f"written: {args.out}")


def loop(args: argparse.Namespace, run: Run, loader: Iterable[Tensor], device: torch.device) -> None:
    """Steps until the time is over or their number is reached."""
    torch.set_float32_matmul_precision("high")
    loss_of = make_loss(run.model, args.text_loss, device)
    session, clock = time.perf_counter(), Clock(run.elapsed)
    log = Log(clock, f"/{60 * args.minutes:.0f}" if args.minutes else "", args.batch * args.row)
    log_at, save_at = run.elapsed + args.log_every, run.elapsed + args.save_every
    for n, batch in enumerate(loader):
        if n == UNTIMED_STEPS:
            log.forget()  # waits for the device
            clock.start()
            say(f"The first {n} steps took {time.perf_counter() - session:.0f} s{memory(device)}; they are not timed.")
            say("Below: the loss of each kind; of replies also the share of tokens and of whole replies that are right")
        run.elapsed = clock.seconds
        done = run.step / args.steps if args.steps else run.elapsed / (60 * args.minutes)
        if done >= 1:
            break
        lr = args.lr * lr_factor(done, run.step, args.warmup)
        log.add(run.update(loss_of, batch.to(device, non_blocking=True), lr))
        if clock.running and clock.seconds >= log_at:
            log.line(run.step, lr)
            log_at = clock.seconds + args.log_every
        if clock.running and clock.seconds >= save_at:
            run.elapsed = clock.seconds
            save(run, args)
            save_at = clock.seconds + args.save_every
    log.line(run.step, 0.0)
    save(run, args)


def save(run: Run, args: argparse.Namespace) -> None:
    run.save(args.state)
    write_weights(run.model, args.out)


class Clock:
    """Seconds of training: those of earlier sessions, and those of this one since `start`."""

    def __init__(self, before: float):
        self.before, self.started = before, 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    @property
    def running(self) -> bool:
        return self.started > 0

    @property
    def seconds(self) -> float:
        return self.before + (time.perf_counter() - self.started if self.running else 0.0)


class Log:
    """Sums the figures of steps on the device, and reads them only for a line."""

    def __init__(self, clock: Clock, total: str, tokens_per_step: int):
        self.clock, self.total, self.tokens_per_step = clock, total, tokens_per_step
        self.figures: Tensor | None = None
        self.steps, self.since = 0, clock.seconds

    def add(self, figures: Tensor) -> None:
        self.figures = figures if self.figures is None else self.figures + figures
        self.steps += 1

    def forget(self) -> str:
        """Begin anew; returns what was known in words, after waiting for the device."""
        words = report(self.figures) if self.figures is not None else ""
        self.figures, self.steps, self.since = None, 0, self.clock.seconds
        return words

    def line(self, step: int, lr: float) -> None:
        steps, since, words = self.steps, self.since, self.forget()
        speed = steps * self.tokens_per_step / max(self.since - since, 1e-9) if self.clock.running else 0.0
        if words:
            say(f"{self.since:.0f}{self.total} s, step {step}, lr {lr:.1e}, {speed / 1e3:.0f}K tokens/s | {words}")


def memory(device: torch.device) -> str:
    return f" and {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else ""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
