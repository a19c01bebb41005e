"""Jinja for programs of strangers: what transformers gives to chat templates, and a bound on all that a template does.

Jinja's own sandbox keeps a template away from Python's insides, but lets it run for ever and fill the memory. Here every
value that a template makes, every call, every turn of a loop and all it writes is counted, in the compiled template itself.
A published template takes some hundredths of what it may.
"""

from __future__ import annotations

import functools
import json
import re
import string
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

from weights.text.counting import BITS, SIZE, CountingGenerator, TooMuch, size_of

SECONDS = 0.5  # of computing, for one conversation
STEPS = 100_000  # values made, and turns of loops
TOTAL = 10_000_000  # of all values together
WORK = 2_000_000  # of one filter or method: the size of its value times that of its largest argument
WRITTEN = 1_000_000  # characters
# For these a number is a value, not a measure of the work.
HARMLESS = {"default", "d", "format", "map", "select", "selectattr", "reject", "rejectattr"}
MEASURED = (str, bytes, list, tuple, dict, int)
PERCENT_WIDTHS = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that count what they do; `begin` before each compilation and rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=_finalize,
            optimized=False,  # nothing is computed while compiling
        )
        self.code_generator_class = CountingGenerator
        self.begin()
        self.filters["tojson"] = _tojson
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def begin(self) -> None:
        self._steps, self._total, self._written = 0, 0, 0
        self._deadline = time.thread_time() + SECONDS

    # Called by compiled templates ---------------------------------------------------------------------------------------

    def made(self, value: Any) -> Any:
        """Count a value, and hand it on."""
        self.step()
        self._total += self._check(value) if not isinstance(value, range) else 1
        if self._total > TOTAL:
            raise TooMuch("it makes too many values")
        return value

    def step(self, to_write: int = 0) -> bool:
        """Count a turn of a loop or the call of a macro, and what it is going to write."""
        self._steps += 1
        self._written += to_write
        if self._steps > STEPS or time.thread_time() > self._deadline:
            raise TooMuch("it runs for too long")
        if self._written > WRITTEN:
            raise TooMuch("it writes too much")
        return True

    def joined(self, values: tuple) -> str:
        """What the operator ~ makes."""
        if sum(map(self._check, values)) > SIZE:
            raise TooMuch("it makes an outsized value")
        return "".join(map(str, values))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, MEASURED):
            args = __self._check_work(getattr(__obj, "__name__", ""), owner, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [self._check(left), self._check(right)]
        if operator == "%" and isinstance(left, (str, bytes)):
            self._check_percent(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * right}.get(operator, 0)
            if bits > BITS:
                raise TooMuch("it makes an outsized number")
        elif operator == "*":
            times = [value if isinstance(value, int) else size for value, size in zip((left, right), sizes, strict=True)]
            if times[0] * times[1] > SIZE:
                raise TooMuch("it makes an outsized value")
        elif sum(sizes) > SIZE:
            raise TooMuch("it makes an outsized value")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        sandboxed = super().wrap_str_format(value)
        if sandboxed is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._check_format(value.__self__, args, kwargs)
            return sandboxed(*args, **kwargs)

        return bounded

    def format_string(self, s: str, args: Any, kwargs: Any, *others: Any) -> str:
        """As `wrap_str_format`, in earlier releases of Jinja."""
        self._check_format(s, args, kwargs)
        return super().format_string(s, args, kwargs, *others)

    # Bounds -------------------------------------------------------------------------------------------------------------

    def _check(self, value: Any) -> int:
        if (size := size_of(value)) > SIZE:
            raise TooMuch("it makes an outsized value")
        return size

    def _check_format(self, form: str, args: Any, kwargs: Any) -> None:
        widths = [width for _, _, spec, _ in string.Formatter().parse(form) for width in re.findall(r"[\d{]+", spec or "")]
        self._check_widths(widths, form, [args, kwargs])

    def _check_percent(self, form: str | bytes, values: Any) -> None:
        text = form if isinstance(form, str) else form.decode("latin-1")
        self._check_widths([width for match in PERCENT_WIDTHS.findall(text) for width in match if width], form, values)

    def _check_widths(self, widths: list[str], form: str | bytes, values: Any) -> None:
        """widths: that the form asks for, as it writes them"""
        if not all(width.isdecimal() for width in widths):
            raise TooMuch("it computes the width of a format")
        if sum(int(width[:9]) for width in widths) > SIZE or size_of(form) * (size_of(values) + 1) > WORK:
            raise TooMuch("it makes an outsized value")

    def _check_work(self, name: str, value: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
        """The same arguments, iterators as lists, so that they have a size."""
        args = tuple(map(_as_list, args))
        others = [1]
        for other in (*args, *kwargs.values()):
            is_measure = isinstance(other, int) and name not in HARMLESS
            others.append(abs(other) if is_measure else self._check(other))
        if (self._check(value) + 1) * max(others) > WORK:
            raise TooMuch(f"it asks too much of {name}")
        if name == "sum" and not all(isinstance(start, (int, float)) for start in (*args[1:], kwargs.get("start", 0))):
            raise TooMuch("it adds up what is no number")
        if name == "format" and isinstance(value, (str, bytes)):
            self._check_percent(value, args or kwargs)
        return args

    def _bounded(self, name: str, function: Any) -> Any:
        n_own = int(hasattr(function, "jinja_pass_arg"))  # a context, or the environment, before the value

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            own, (value, *others) = args[:n_own], args[n_own:]
            value = _as_list(value)
            self.step()
            others = self._check_work(name, value, tuple(others), kwargs)
            return self.made(function(*own, value, *others, **kwargs))

        return bounded


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) and not isinstance(value, LoopContext) else value


@pass_context
def _finalize(context: Any, value: Any) -> Any:
    """Count a value that is about to be written."""
    context.environment.step(context.environment._check(value))
    return value


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}, which tells a trainer what a model wrote; here it is what it holds."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
