"""The options that the scripts share, what they mean, and how a script ends."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn, TextIO

from texts import read_text

from cli.ranks import tell_once
from cli.start import begun, clear, is_script, say
from cli.terminal import printable
from model import InputError
from model.config import WEIGHTS
from weights.hub import DEMOS, local_folder
from wim import __version__
from wim.prompts import Prompts
from wim.settings import MARGINS, WISHED, WISHES, Settings, Wishes

if TYPE_CHECKING:  # what needs torch is imported where it is used: --help does not wait for it
    from weights import Checkpoint

MAX_DIGITS = 9  # thousands of them are more than int() reads
MAX_MESSAGE = 600  # characters of an error: arguments and file names can be of any length
MAX_WORD = 120  # characters of one word of it
TEXTS = ("--query", "--system")  # options for which nothing is a value, too


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one short sentence, and ends with 2."""

    def __init__(self, description: str | None):
        clear()
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--version", action="version", version=f"writing-in-the-margins {__version__}")

    def parse_args(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """As argparse; an empty value, as a shell makes of an unset variable, is refused and not taken for none."""
        arguments = sys.argv[1:] if arguments is None else arguments
        for before, argument in pairwise(["", *arguments]):
            option = argument[:-1] if re.fullmatch(r"--[a-z-]+=", argument) else before if not argument else ""
            if option and option not in TEXTS:
                self.error(f"{option} is empty; give it a value, or leave it out")
        return super().parse_args(arguments)

    def error(self, message: str) -> NoReturn:
        if message.endswith(("expected one argument", "expected at least one argument")):
            message += " (one that begins with a dash is joined to it: --query=-x)"
        self.exit(2, f"error: {sentence(message)}; --help lists the options.\n")


def sentence(message: str) -> str:
    """A message on one line and of a length that can be read; what is too long loses its middle, word or message."""
    return _cut(" ".join(_cut(word, MAX_WORD) for word in printable(message).split()), MAX_MESSAGE)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"


def add_checkpoint_options(parser: argparse.ArgumentParser, compiles: bool = False) -> None:
    """compiles: see add_compile_option"""
    add = parser.add_argument
    add("--model", default="demo-llama", metavar="FOLDER_OR_ID", help=f"a checkpoint; shipped: {', '.join(DEMOS)}")
    add("--revision", help="which revision of a hub repository")
    add("--classifier", default="same", metavar="same|none|FOLDER_OR_ID", help="who judges the margins")
    add("--device", help="default: the first there is of cuda, mps, cpu")
    add("--dtype", help="what is computed in; default: bfloat16 where the device has it")
    add("--weights", choices=WEIGHTS, default="float", help="int8: rounded to 8 bits, for half the memory; default float")
    add_compile_option(parser, compiles)


def add_compile_option(parser: argparse.ArgumentParser, compiles: bool) -> None:
    """compiles: where nothing is said, which is None, the script decides (cli/compiling.py); there is --no-compile then"""
    about = "CUDA: compile the layers; begins some seconds later, then all is faster"
    if compiles:
        about, action = f"{about}; default: where the run is long enough for it to pay", argparse.BooleanOptionalAction
        parser.add_argument("--compile", action=action, help=about)
    else:
        parser.add_argument("--compile", action="store_true", help=about)


def add_reading_options(parser: argparse.ArgumentParser, margin_window: str) -> None:
    """margin_window: the script's default, a number or `all`."""
    add, defaults, wishes = parser.add_argument, Settings(), f"or what the checkpoint's {WISHES} says"
    add("--chunk-tokens", type=int, help=f"at most this many tokens in a chunk; default {defaults.chunk_tokens}, {wishes}")
    how = f"{', '.join(MARGINS)}: written by the model, or sentences that it looks at; default {defaults.margins}, {wishes}"
    add("--margins", choices=MARGINS, help=how)
    add("--underlines", type=int, metavar="N", help=f"at most so many sentences; default {defaults.underlines}, {wishes}")
    longest = f"{defaults.margin_tokens}, {wishes}"
    add("--margin-tokens", type=int, help=f"at most this many tokens in a margin; default {longest}")
    together = f"write the margins of N chunks together; default {margin_window}"
    add("--margin-window", default=margin_window, metavar="N|all", help=together)
    parser.set_defaults(usual_window=margin_window)
    add("--pack", action="store_true", help="judge a margin while the next chunk is read (window 1)")
    add(
        "--keep-repeats",
        action="store_true",
        help="keep sentences in the final prompt that an earlier margin holds already",
    )
    tokens, threshold = f"{defaults.answer_tokens}, {wishes}", f"{defaults.threshold}, {wishes}"
    add("--answer-tokens", type=int, help=f"at most this many tokens in the answer; default {tokens}")
    relevant = f"from this probability of YES on, a margin is relevant; default {threshold}"
    add("--threshold", type=float, help=relevant)
    add("--prompts", metavar="FILE", help="a JSON file with prompts to use instead of the project's own")
    add("--system", metavar="TEXT", help="a system prompt")
    add("--temperature", type=float, default=defaults.temperature, help="0, the default, is greedy")
    add(
        "--top-p",
        type=float,
        default=defaults.top_p,
        help="draw from the likeliest tokens that have this probability together; default 1",
    )
    add("--seed", type=int, default=defaults.seed, help=f"of the random draws; default {defaults.seed}")


def parse_window(text: str, option: str = "--margin-window") -> int | None:
    """A number of chunks; None for `all`. Raises InputError for anything else."""
    if text == "all":
        return None
    if (n_chunks := whole_number(text)) is None:
        raise InputError(f"{option} is {text!r}; give a number of chunks from 1 up, or all.")
    return n_chunks


def whole_number(text: str) -> int | None:
    """A number from 1 up with at most MAX_DIGITS digits; None for any other text."""
    number = int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else 0
    return number or None


def check_options(args: argparse.Namespace, pattern: str = "wim") -> None:
    """What can be told without torch, which takes seconds to load. Raises InputError for a path that leads nowhere, and
    for values that make no sense."""
    for name in (args.model, args.classifier):
        if name not in DEMOS and name not in ("same", "none"):
            local_folder(name)
    reading_settings(args, None, pattern)
    reading_prompts(args, None)


def reading_settings(args: argparse.Namespace, checkpoint: Checkpoint | None, pattern: str = "wim") -> Settings:
    """What was asked for, then what the checkpoint wishes for. Raises InputError for values that make no sense."""
    numbers = {name: value for name in WISHED if (value := getattr(args, name)) is not None}
    settings = _wishes(checkpoint).settings(
        pattern=pattern,
        **numbers,
        margin_window=parse_window(args.margin_window),
        pack=args.pack,
        keep_repeats=args.keep_repeats,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        system=args.system,
    )
    if pattern == "wim" and settings.margins == "underlined":
        _check_written(args)
    return settings


def _check_written(args: argparse.Namespace) -> None:
    """Raises InputError for an option that somebody gave and that is about written margins, where none are written."""
    judges_chunks = "rag" in getattr(args, "patterns", "")  # by the same threshold
    given = {
        "--threshold": args.threshold is not None and not judges_chunks,
        "--keep-repeats": args.keep_repeats,
        "--margin-window": args.margin_window != args.usual_window,
    }
    for option, is_given in given.items():
        if is_given:
            raise InputError(
                f"{option} is about written margins, and margins is underlined; leave it out, or give --margins."
            )


def reading_prompts(args: argparse.Namespace, checkpoint: Checkpoint | None) -> Prompts | None:
    """Those of --prompts, and the checkpoint's own for the rest; None without that option.

    Raises InputError for a file that is not as it should be.
    """
    if (path := args.prompts) is None:
        return None
    text = read_text(path, "The prompts file")
    try:
        texts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The prompts file {path} is not JSON ({error}); write one object of texts.") from None
    return _wishes(checkpoint).prompts.changed(texts, f"The prompts file {path}")


def _wishes(checkpoint: Checkpoint | None) -> Wishes:
    """None, where the checkpoint has not been opened yet, is taken to wish for margins that go with every option."""
    return Wishes({"margins": "both"}, Prompts()) if checkpoint is None else Wishes.of(checkpoint.folder)


def open_checkpoints(args: argparse.Namespace) -> tuple[Checkpoint, Checkpoint | None]:
    """The model and who judges margins: the same one, another, or nobody. Only their small files are read."""
    from weights import Checkpoint

    say("opening the checkpoint")
    checkpoint = Checkpoint.open(args.model, args.revision)
    if args.classifier in ("same", "none"):
        return checkpoint, checkpoint if args.classifier == "same" else None
    return checkpoint, Checkpoint.open(args.classifier)


def exit_code(work: Callable[[], object], interrupted: str = "Interrupted.") -> int:
    """Do the work of a script and return how it is to end.

    0    the work is done
    2    something cannot be used; a sentence on stderr says what
    130  Ctrl-C
    141  the reader of the output has gone (`| head`); a shell gives the same code

    What cannot be written to stderr is lost and changes none of these.
    """
    stderr = sys.stderr
    sys.stderr = Lossy(stderr)
    begun()
    try:
        code = _exit_code(work, interrupted)
    except KeyboardInterrupt:  # once more, within the last words
        code = 130
    finally:
        if is_script():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left takes no time, and the code is known
            gc.freeze()  # or Python looks through all of torch once more
        try:
            if stderr is not None:
                stderr.flush()
        except (OSError, ValueError):
            _discard(stderr)
        sys.stderr = stderr
    return code


def _exit_code(work: Callable[[], object], interrupted: str) -> int:
    try:
        if sys.stdout is None:
            raise InputError("The standard output is closed; send it to a file or to /dev/null.")
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can write every character
        work()
        sys.stdout.flush()
    except InputError as error:
        clear()
        tell_once(f"error: {sentence(str(error))}")
        return 2
    except BrokenPipeError:
        _discard(sys.stdout)
        return 141
    except OSError as error:
        what = str(error.filename)[:200] if error.filename else "A file or stream"
        said = sentence(f"{what} cannot be used ({error.strerror}); check it and the free space.")
        tell_once(f"error: {said}")
        try:
            sys.stdout.flush()
        except OSError:
            _discard(sys.stdout)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    return 0


class Lossy:
    """A stream that drops what cannot be written: progress and messages must not end a run.

    stream: None for a closed one, which drops everything
    """

    def __init__(self, stream: TextIO | None):
        self.stream = open(os.devnull, "w") if stream is None else stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def _discard(stream: TextIO) -> None:
    """Or Python fails once more at its end, over what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
