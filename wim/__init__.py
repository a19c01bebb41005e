"""Text, chunks and the order of events, and no tensor arithmetic: Writing in the Margins on top of `model/`.

This is the part to carry over to another model. README.md says in which order to read it.
"""

from wim.budget import Plan, make_plan
from wim.loop import WiM
from wim.prompts import Prompts
from wim.reader import Reader, open_document
from wim.settings import Settings, Wishes

__all__ = ["Plan", "Prompts", "Reader", "Settings", "WiM", "Wishes", "make_plan", "open_document"]
