"""Is a margin relevant? A model is asked for YES or NO, on a cache of its own, and its first token's odds are read off."""

from __future__ import annotations

from model.session import Session
from wim.plan import Wording


class Classifier:
    """A model, its prompts, and a cache that holds only the header which all verdicts share."""

    def __init__(self, session: Session, wording: Wording):
        self.session, self.wording = session, wording
        session.prefill(wording.header)

    def judge(self, query: str, margins: list[str]) -> tuple[list[float], int]:
        """The probability of YES against NO for each margin, and how many tokens were read for it."""
        prompts = [self.wording.verdict(query, margin) for margin in margins]
        return self.session.compare(prompts, self.wording.yes, self.wording.no), sum(map(len, prompts))

    def judge_while_reading(self, query: str, margin: str, reader: Session, token_ids: list[int]) -> tuple[float, int]:
        """As `judge`, riding along with tokens that `reader`, a session of the same model, has to read anyway."""
        prompt = self.wording.verdict(query, margin)
        probability = reader.prefill_and_compare(token_ids, self.session, prompt, self.wording.yes, self.wording.no)
        return probability, len(prompt)
