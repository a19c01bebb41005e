"""From a folder or a hub id to a model, a tokenizer and a chat format: the formats that checkpoints are published in.

Begin with checkpoint.py, text/tokenizer.py and text/chat.py. device.py says where the weights go, and what fits there.
"""

from weights.checkpoint import Checkpoint
from weights.hub import DEMOS
from weights.text.chat import ChatFormat
from weights.text.tokenizer import Tokenizer

__all__ = ["DEMOS", "ChatFormat", "Checkpoint", "Tokenizer"]
