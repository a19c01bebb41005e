"""What a person types: lines with history and editing, a text changed in an editor, and Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.start import FIRST
from model.errors import InputError

try:
    import readline  # input() has history and editing through it
except ImportError:  # a Python that was built without
    readline = None


def read_line(prompt: str, begun: str = "") -> str | None:
    """A line, without its end; None where no more will come. The prompt is for terminals only.

    begun: what stands there already, to be edited
    Raises KeyboardInterrupt at Ctrl-C.
    """
    with on_ctrl_c(signal.default_int_handler):
        try:
            if is_typed() and sys.stdout.isatty():
                if readline is not None:
                    readline.set_startup_hook(lambda: readline.insert_text(begun))
                return input(prompt)
            if is_typed():  # what is printed goes elsewhere
                print(prompt, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline() if sys.stdin is not None else ""
            return line.rstrip("\r\n") if line else None
        except EOFError:
            print(file=sys.stderr)
            return None
        finally:
            if readline is not None:
                readline.set_startup_hook(None)


def is_typed() -> bool:
    """Whether somebody sits there; otherwise lines come from a file or a program."""
    return sys.stdin is not None and sys.stdin.isatty()


def take_lines(piped: bool) -> None:
    """Before the first line. Raises InputError where there is nobody to type any.

    piped: the standard input was the document, so lines come from the terminal
    """
    if piped:
        try:
            terminal = os.open("/dev/tty", os.O_RDWR)
        except OSError:
            raise InputError(
                "The standard input was the document, and there is no terminal to type at; name it with --context."
            ) from None
        os.dup2(terminal, 0)
        os.close(terminal)
        sys.stdin = open(0, closefd=False)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # what is no text is no reason to end


def edit(text: str) -> str | None:
    """The text as somebody changes it: in $VISUAL or $EDITOR, else on the line. None at Ctrl-C, or where nothing was typed.

    Raises InputError for an editor that does not work, and where nobody sits there.
    """
    if not is_typed():
        raise InputError("There is nobody to edit it; write the new text behind the number.")
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if editor:
        return _edit_in(editor, text)
    try:
        return read_line("edit> ", text)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return None


def _edit_in(editor: str, text: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "margin.txt")
        path.write_text(f"{text}\n", encoding="utf-8")
        try:
            with on_ctrl_c(unheeded):  # it is the editor's
                subprocess.run([*shlex.split(editor), str(path)], check=True)
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise InputError(f"The editor {editor!r} did not work ({error}); set EDITOR, or unset it.") from None


def unheeded(signum: int, frame: object) -> None:
    """What Ctrl-C does between a prompt and what runs: one that comes a moment too late must not end the session."""


@contextmanager
def on_ctrl_c(handler: Callable) -> Iterator[None]:
    if not FIRST:  # of several processes the first heeds it
        yield
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def ctrl_c_unseen() -> Iterator[None]:
    """While the model works, a terminal does not write ^C into the line that is being drawn."""
    try:
        stream = sys.stderr.fileno()
        before = termios.tcgetattr(stream)
        if os.tcgetpgrp(stream) != os.getpgrp():  # in the background; changing the terminal would stop the process
            before = None
    except (AttributeError, OSError, ValueError, termios.error):
        before = None
    if before is None:
        yield
        return
    unseen = [*before[:3], before[3] & ~termios.ECHOCTL, *before[4:]]
    termios.tcsetattr(stream, termios.TCSADRAIN, unseen)
    try:
        yield
    finally:
        termios.tcsetattr(stream, termios.TCSADRAIN, before)
