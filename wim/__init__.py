"""Text, chunks and the order of events, and no tensor arithmetic: Writing in the Margins on top of `model/`.

This is the part to carry over to another model. README.md says in which order to read it.
"""

from importlib import import_module

__version__ = "0.1.0"

# Each name is loaded from its module when it is first asked for: settings need no torch, which takes seconds.
MODULES = {
    "Plan": "budget",
    "Prompts": "prompts",
    "Reader": "reader",
    "Settings": "settings",
    "WiM": "loop",
    "Wishes": "settings",
    "make_plan": "budget",
    "open_document": "reader",
}
__all__ = [*MODULES]


def __getattr__(name: str) -> object:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
