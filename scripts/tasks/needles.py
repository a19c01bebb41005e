"""Needles: sentences that give a city a secret number, and questions that ask for one or several of them.

The three questions are RULER's retrieval tasks (Hsieh et al. 2024, arXiv 2404.06654, section 3, "Retrieval"):
multi-keys (one key among several), multi-values (every number of one key) and multi-queries (several keys at once).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tasks.document import FactQuestion

CITIES = tuple(
    """
    Paris Oslo Rome Madrid Lisbon Vienna Prague Dublin Athens Berlin London Moscow Cairo Lima Quito Boston
    Denver Tokyo Seoul Delhi Mumbai Sydney Havana Geneva Munich Hamburg Warsaw Zurich Venice Naples Milan Turin
    Bergen Toronto Chicago Dallas Austin Nairobi Lagos Tunis Bogota Santiago Ankara Baghdad Manila Jakarta
    Bangkok Beijing
    """.split()
)

# The form of a needle: a background sentence that has it could contradict one.
NEEDLE = re.compile(r"\bsecret numbers? of [A-Z]")

NEEDLE_TASKS = {
    "needles_single": "the secret number of one city among several (RULER's multi-keys)",
    "needles_several": "the secret numbers of two to four cities at once (RULER's multi-queries)",
    "needles_values": "all two to four secret numbers of one city (RULER's multi-values)",
}
MAX_NEEDLES = len(CITIES)  # each needle may need a city of its own


@dataclass(frozen=True)
class Needles:
    """Needles in the order of the text: (city, number) pairs; a city may have several numbers."""

    pairs: tuple[tuple[str, str], ...]
    queried: tuple[tuple[str, ...], ...]  # groups of cities that are asked for together

    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for index, (city, _) in enumerate(self.pairs):
            places.setdefault(city, []).append(index)
        return places

    @property
    def texts(self) -> list[str]:
        """The needles as sentences."""
        places = self._places()
        return [
            f"{'The' if len(places[city]) == 1 else 'One'} secret number of {city} is {number}."
            for city, number in self.pairs
        ]

    def questions(self, *tasks: str) -> list[FactQuestion]:
        """Every question of the named tasks (all of them without names), in a fixed order."""
        found = []
        places = self._places()
        for task in tasks or NEEDLE_TASKS:
            if task == "needles_several":
                for cities in self.queried:
                    query = f"What are the secret numbers of {', '.join(cities[:-1])} and {cities[-1]}?"
                    indices = [places[city][0] for city in cities]
                    numbers = tuple(self.pairs[i][1] for i in indices)  # in the order of the question
                    found.append(FactQuestion(task, query, numbers, tuple(sorted(indices))))
                continue
            for city, indices in places.items():
                numbers = tuple(self.pairs[i][1] for i in indices)
                if task == "needles_single" and len(numbers) == 1:
                    query = f"What is the secret number of {city}?"
                    found.append(FactQuestion(task, query, numbers[0], tuple(indices)))
                elif task == "needles_values" and len(numbers) > 1:
                    query = f"What are all the secret numbers of {city}?"
                    found.append(FactQuestion(task, query, numbers, tuple(indices)))
        return found


def make_needles(rng: random.Random, n_needles: int) -> Needles:
    """Give `n_needles` different four-digit numbers to cities, about a third of them to cities with several."""
    cities = iter(rng.sample(CITIES, min(n_needles, MAX_NEEDLES)))
    owners: list[str] = []
    single: list[str] = []
    while len(owners) < n_needles:
        city, room = next(cities), n_needles - len(owners)
        if room > 1 and rng.random() < 0.15:
            owners += [city] * min(room, rng.randint(2, 4))
        else:
            owners.append(city)
            single.append(city)
    rng.shuffle(owners)
    numbers = map(str, rng.sample(range(1000, 10_000), n_needles))
    sizes = [rng.randint(2, min(4, len(single))) for _ in range(len(single) // 2)]  # one question for two cities
    queried = dict.fromkeys(tuple(rng.sample(single, size)) for size in sizes)
    return Needles(tuple(zip(owners, numbers, strict=True)), tuple(queried))
