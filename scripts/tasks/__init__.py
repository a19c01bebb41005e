"""Tasks to measure with: documents with questions whose evidence is known, readers of published files, and scores."""

from tasks.background import Background
from tasks.document import NO_EVIDENCE, Document, FactQuestion, Question
from tasks.formats import FORMATS, read_examples
from tasks.hiding import TASKS, hide, make_document
from tasks.needles import NEEDLE_TASKS, make_needles
from tasks.scores import (
    bounded_bootstrap,
    chosen_letter,
    contained_match,
    exact_match,
    interval,
    list_f1,
    main_measure,
    normalize,
    recall_all,
    score,
    token_f1,
)
from tasks.story import STORY_TASKS, Story, simulate

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
    "bounded_bootstrap",
    "chosen_letter",
    "contained_match",
    "exact_match",
    "hide",
    "interval",
    "list_f1",
    "main_measure",
    "make_document",
    "make_needles",
    "normalize",
    "read_examples",
    "recall_all",
    "score",
    "simulate",
    "token_f1",
]
