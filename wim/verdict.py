"""Is a margin relevant? A model is asked for YES or NO, on a cache of its own.

The probability of YES against NO is read off the first token of its reply.
"""

from __future__ import annotations

from model.session import Session
from wim.prompt_ids import PromptIds


class Classifier:
    """A model, its prompts, and a cache that holds only the header which all verdicts share."""

    def __init__(self, session: Session, prompts: PromptIds):
        self.session, self.prompts = session, prompts
        if prompts.chat_header:
            session.prefill(prompts.chat_header)

    def judge(self, query: str, margins: list[str]) -> tuple[list[float], int]:
        """The probability of YES against NO for each margin, and how many tokens were read for it."""
        prompts = [self.prompts.verdict(query, margin) for margin in margins]
        return self.session.probability(prompts, self.prompts.yes, self.prompts.no), sum(map(len, prompts))

    def judge_while_reading(self, query: str, margin: str, reader: Session, token_ids: list[int]) -> tuple[float, int]:
        """As `judge`, riding along with tokens that `reader`, a session of the same model, has to read anyway."""
        prompt = self.prompts.verdict(query, margin)
        probability = reader.prefill_and_probability(token_ids, self.session, prompt, self.prompts.yes, self.prompts.no)
        return probability, len(prompt)
