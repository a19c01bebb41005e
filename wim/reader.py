"""From checkpoints to a `WiM`: the budget first, then the memory, and only then the weights.

What cannot work is said in a sentence before gigabytes are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model import InputError
from weights import Checkpoint
from weights.safetensors_loader import Progress
from weights.sessions import Sessions, Wanted
from wim.budget import Plan, make_plan
from wim.loop import WiM
from wim.prompts import Prompts
from wim.settings import Settings
from wim.verdict import Classifier

if TYPE_CHECKING:
    from model.parallel import Rank


def open_document(
    checkpoint: Checkpoint,
    document: str,
    queries: list[str],
    settings: Settings,
    *,
    prompts: Prompts | None = None,
    classifier: Checkpoint | None = None,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
    compiled: bool = False,
    weights: str = "float",
    rank: Rank | None = None,
) -> WiM:
    """Plan a run over one document, check the room it needs, load the weights and allocate the caches.

    queries: all that will be asked; the room is computed for the largest
    prompts: None for those that the checkpoint's folder brings, or the project's own
    classifier: judges margins; may be `checkpoint` itself, which then serves both with one copy of its weights
    device, dtype, progress, compiled, weights, rank: see weights.sessions.Sessions
    Raises InputError for whatever does not fit.
    """
    plan = make_plan(checkpoint, document, queries, settings, prompts, classifier)
    return Reader(checkpoint, classifier, Sessions(device, dtype, progress, compiled, weights, rank)).open(plan)


class Reader:
    """Reads one document after another with the same models and caches. The `WiM` of the one before has lost its cache."""

    def __init__(self, checkpoint: Checkpoint, classifier: Checkpoint | None, sessions: Sessions):
        self.checkpoint, self.classifier, self.sessions = checkpoint, classifier, sessions

    def open(self, plan: Plan) -> WiM:
        """If memory is short, the WiM gets a plan that asks for less. Raises InputError when that does not help."""
        while True:
            wanted = wanted_sessions(plan, self.checkpoint, self.classifier)
            try:
                self.sessions.check_room(wanted)
                break
            except InputError:
                if (smaller := plan.smaller()) is None:
                    raise
                plan = smaller
        session, *judges = map(self.sessions.open, wanted)
        return WiM(plan, session, Classifier(judges[0], plan.classifier_prompts) if judges else None)


def wanted_sessions(plan: Plan, checkpoint: Checkpoint, classifier: Checkpoint | None) -> list[Wanted]:
    """The document's session; where margins are judged, also that of verdicts."""
    wanted = [Wanted("document", checkpoint, plan.capacity, plan.max_length, plan.prompts_together)]
    if plan.verdict_capacity:
        # A model that judges its own margins keeps the rotary frequencies of the document's length: two sessions share it.
        max_length = plan.max_length if classifier.folder == checkpoint.folder else plan.verdict_length
        wanted.append(Wanted("verdicts", classifier, plan.verdict_capacity, max_length, plan.verdict_capacity))
    return wanted
