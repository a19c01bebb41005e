"""How much a template does: the size of its values, and compiled templates that report what they do while they do it."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.utils import Namespace

SIZE = 200_000  # of one value, see `size_of`
BITS = 10_000  # of a whole number


class TooMuch(jinja2.TemplateRuntimeError):
    """A template does more than any chat template has to."""


def size_of(value: Any) -> int:
    """About how many characters a value has, with all that it holds; counting ends soon after SIZE."""
    total, stack = 0, [value]
    while stack and total <= SIZE:
        part = stack.pop()
        if isinstance(part, (str, bytes)):
            total += len(part)
        elif isinstance(part, int):
            if part.bit_length() > BITS:
                raise TooMuch("it makes an outsized number")
            total += 1
        elif isinstance(part, range):
            total += 8 * len(part)
        else:
            if isinstance(part, Namespace):
                part = part._Namespace__attrs
            total += 1
            if isinstance(part, dict):
                part = part.items()
            if isinstance(part, (list, tuple, set, frozenset, ItemsView, KeysView, ValuesView)):
                total += 8 * len(part)
                if total <= SIZE:
                    stack.extend(part)
    return total


class CountingGenerator(CodeGenerator):
    """Writes calls of the environment's `made`, `step` and `joined` into a compiled template."""

    MAKERS = (
        *(nodes.Call, nodes.Filter, nodes.Test, nodes.Concat, nodes.Compare, nodes.Getitem, nodes.List, nodes.Dict),
        *(nodes.Tuple, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
    )

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(node, self.MAKERS) or getattr(node, "ctx", "load") != "load":
            return super().visit(node, *args, **kwargs)
        self.write("environment.made(")
        super().visit(node, *args, **kwargs)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_For(self, node: nodes.For, frame: Any) -> None:
        if node.test is not None:
            node.test = nodes.And(_step(0), node.test)
        super().visit_For(self._counting(node), frame)

    def visit_Macro(self, node: nodes.Macro, frame: Any) -> None:
        super().visit_Macro(self._counting(node), frame)

    def visit_CallBlock(self, node: nodes.CallBlock, frame: Any) -> None:
        super().visit_CallBlock(self._counting(node), frame)

    def _counting(self, node: Any) -> Any:
        to_write = sum(len(data.data) for part in node.body for data in _template_data(part))
        node.body = [nodes.ExprStmt(_step(to_write)), *node.body]
        return node


def _step(to_write: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute("step"), [nodes.Const(to_write)], [], None, None)


def _template_data(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    yield from [node] if isinstance(node, nodes.TemplateData) else node.find_all(nodes.TemplateData)
