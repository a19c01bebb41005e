"""Text, chunks and the order of events, and no tensor arithmetic: Writing in the Margins on top of `model/`.

This is the part to carry over to another model. README.md says in which order to read it.
"""

from model.lazy import from_modules

__version__ = "0.1.0"

# Each name is loaded from its module when it is first asked for (model/lazy.py).
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
__getattr__ = from_modules(__name__, MODULES)
