"""Is a margin relevant? One that says there is nothing is not. About any other, a model is asked for YES or NO.

It is asked in a cache of its own. The probability of YES against NO is read off the first token of its reply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wim.prompt_ids import PromptIds

if TYPE_CHECKING:
    from wim.contracts import Session

# How models say that a chunk has nothing, without the marks around it.
NOTHING = {"", "none", "n/a", "na", "null", "not applicable", "there is none", "there are none", "i don't know"}
NOTHING |= {"i do not know", "none found", "no relevant sentence", "no relevant sentences", "no relevant information"}


def says_nothing(margin: str) -> bool:
    """Whether a margin is no more than a way to say that there is nothing."""
    words = " ".join(margin.casefold().replace("’", "'").split())
    return words.strip(" .,:;!…。-–—*_`\"'“”()[]") in NOTHING


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

    def judge_while_reading(self, query: str, margin: str, session: Session, token_ids: list[int]) -> tuple[float, int]:
        """As `judge`, riding along with tokens that `session`, on the same model, has to read anyway."""
        prompt = self.prompts.verdict(query, margin)
        probability = session.prefill_and_probability(token_ids, self.session, prompt, self.prompts.yes, self.prompts.no)
        return probability, len(prompt)
