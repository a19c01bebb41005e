"""Questions and what came of them, as one JSON object: what `--json` prints and `/save` writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from cli.sources import Place, Sources
from wim.events import ChunkJudged, Done


class Record:
    """One shape for one question and several: what is about the run, and a list `results`, one for each answer.

    about: gives the former when it is asked for
    """

    def __init__(self, sources: Sources, about: Callable[[], dict]):
        self.sources, self.about = sources, about
        self.results: list[dict] = []

    def add(self, query: str, done: Done, judged: Sequence[ChunkJudged] = ()) -> None:
        """An answer with its margins as they are now. judged: the chunks, in the pattern `rag`"""
        verdicts = [
            {"chunk": one.chunk, "relevant": one.relevant, "probability": one.probability}
            | _listed(self.sources.of_chunk(one.chunk))
            for one in judged
        ]
        self.results.append(
            {
                "query": query,
                "answer": done.answer,
                "margins": [asdict(margin) | _listed(self.sources.of(margin)) for margin in done.margins],
                "left_out": [margin.chunk for margin in done.left_out],  # of the last prompt, which had no room for them
                **({"chunks": verdicts} if verdicts else {}),
                "chunks_read": done.chunks_read,
                "tokens": done.tokens,
                "seconds": {phase: round(seconds, 4) for phase, seconds in done.seconds.items()},
            }
        )

    def json(self, ascii_only: bool = False) -> str:
        """Half a character (from an argument, or an escape in an example) is nothing that can be printed."""
        text = json.dumps({"results": self.results, **self.about()}, ensure_ascii=ascii_only, indent=1)
        return text.encode("utf-8", "replace").decode("utf-8")


def _listed(places: Sequence[Place]) -> dict:
    return {"sources": [place._asdict() for place in places]}
