"""Names of a package that are loaded when they are first asked for: an error needs no torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def from_modules(package: str, modules: dict[str, str]) -> Callable[[str], object]:
    """A package's `__getattr__` (PEP 562). modules: for each name, the module of the package that defines it"""

    def load(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"{package}.{modules[name]}"), name)
        except AttributeError as error:  # Python would take it for a name that there is not, and hide where it comes from
            raise ImportError(f"{package}.{modules[name]} cannot be loaded ({error})") from error

    return load
