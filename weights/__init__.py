"""From a folder or a hub id to a model, a tokenizer and a chat format: the formats that checkpoints are published in.

Begin with checkpoint.py, text/tokenizer.py and text/chat.py. device.py says where the weights go, and what fits there.
"""

from model.lazy import from_modules

# Each name is loaded from its module when it is first asked for (model/lazy.py).
MODULES = {"DEMOS": "hub", "ChatFormat": "text.chat", "Checkpoint": "checkpoint", "Tokenizer": "text.tokenizer"}
__all__ = [*MODULES]
__getattr__ = from_modules(__name__, MODULES)
