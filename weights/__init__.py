"""From a folder or a hub id to a model, a tokenizer and a chat format: the formats that checkpoints are published in.

Begin with checkpoint.py, text/tokenizer.py and text/chat.py. device.py says where the weights go, and what fits there.
"""

from importlib import import_module

# Each name is loaded from its module when it is first asked for: a folder is found without torch, which takes seconds.
MODULES = {"DEMOS": "hub", "ChatFormat": "text.chat", "Checkpoint": "checkpoint", "Tokenizer": "text.tokenizer"}
__all__ = [*MODULES]


def __getattr__(name: str) -> object:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
