"""Tasks to measure with: documents with questions whose evidence is known, readers of published files, and scores."""

from wim.tasks.background import Background
from wim.tasks.document import NO_EVIDENCE, Document, FactQuestion, Question
from wim.tasks.generate import TASKS, hide, make_document
from wim.tasks.needles import NEEDLE_TASKS, make_needles
from wim.tasks.readers import FORMATS, read_examples
from wim.tasks.scores import (
    bootstrap,
    contained_match,
    exact_match,
    interval,
    list_f1,
    normalize,
    recall_all,
    score,
    token_f1,
)
from wim.tasks.story import STORY_TASKS, Story, simulate

__all__ = [
    "FORMATS",
    "NEEDLE_TASKS",
    "NO_EVIDENCE",
    "STORY_TASKS",
    "TASKS",
    "Background",
    "Document",
    "FactQuestion",
    "Question",
    "Story",
    "bootstrap",
    "contained_match",
    "exact_match",
    "hide",
    "interval",
    "list_f1",
    "make_document",
    "make_needles",
    "normalize",
    "read_examples",
    "recall_all",
    "score",
    "simulate",
    "token_f1",
]
