"""Text, chunks and the order of events, and no tensor arithmetic: Writing in the Margins on top of `model/`.

Read in this order: chunks.py, prompts.py, events.py, plan.py, classifier.py, repeats.py, loop.py; then reader.py, which
puts them together. This is the part to carry over to another model.
"""

from wim.loop import WiM
from wim.plan import Plan, Settings, make_plan
from wim.prompts import Prompts
from wim.reader import Reader, open_reader

__all__ = ["Plan", "Prompts", "Reader", "Settings", "WiM", "make_plan", "open_reader"]
