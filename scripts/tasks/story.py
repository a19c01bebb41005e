"""A small simulated world: persons walk between places and carry objects, one statement for each event.

The world is consistent: a person is in one place at a time, moves only to another place, takes only an object that
is there, and drops only what is carried. So every question has one answer, which follows from its evidence alone.
The questions are in the manner of bAbI (Weston et al. 2015, arXiv 1502.05698, section 3), which BABILong hides in
books (Kuratov et al. 2024, arXiv 2406.10149, section 2); world, wording and generator are our own.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tasks.document import FactQuestion

PERSONS = tuple("Mary John Daniel Sandra Bill Fred Julie Emily Peter Susan Oscar Laura Victor Alice Henry Nora".split())
PLACES = tuple(
    "kitchen garden office bathroom hallway bedroom school park cinema library market station harbor museum bakery "
    "church".split()
)
OBJECTS = tuple("football apple milk lamp book hammer basket umbrella guitar bottle blanket camera".split())

MOVE, TAKE, DROP = "move", "take", "drop"
VERBS = {
    MOVE: ("went to", "walked to", "moved to", "travelled to"),
    TAKE: ("picked up", "took"),
    DROP: ("dropped", "put down"),
}

# The form of a statement: a background sentence that has it could contradict the story.
_ALL_VERBS = "|".join(verb for verbs in VERBS.values() for verb in verbs)
STATEMENT = re.compile(rf"\b(?:{'|'.join(PERSONS)}) (?:{_ALL_VERBS}) the ")

STORY_TASKS = {
    "single_fact": "where a person is: the last of that person's moves",
    "two_facts": "where an object is that somebody carried: who took it, and where that person went with it",
    "listing": "which places a person visited, two to six of them",
    "counting": "how many times a person moved",
}
MAX_PLACES = 6  # the different places that one person ever visits: the longest list that is asked for


@dataclass(frozen=True)
class Statement:
    """One event.

    kind: MOVE, TAKE or DROP
    thing: the place that was moved to, or the object that was taken or dropped
    """

    text: str
    kind: str
    person: str
    thing: str


@dataclass(frozen=True)
class Story:
    """The statements of one simulated world, in the order of events."""

    statements: tuple[Statement, ...]

    @property
    def texts(self) -> list[str]:
        """The statements as sentences."""
        return [statement.text for statement in self.statements]

    def questions(self, *tasks: str) -> list[FactQuestion]:
        """Every answerable question of the named tasks (all of them without names), in a fixed order."""
        moves = self._moves()
        found = []
        for task in tasks or STORY_TASKS:
            if task == "two_facts":
                found += self._two_facts()
                continue
            for person, indices in moves.items():
                places = [self.statements[i].thing for i in indices]
                distinct = tuple(dict.fromkeys(places))  # in the order of the first visit
                if task == "single_fact":
                    query, target = f"Where is {person}?", places[-1]
                elif task == "counting":
                    query, target = f"How many times did {person} move?", str(len(places))
                elif len(distinct) < 2:
                    continue
                else:
                    query, target = f"Which places did {person} visit?", distinct
                found.append(FactQuestion(task, query, target, tuple(indices)))
        return found

    def _moves(self) -> dict[str, list[int]]:
        moves: dict[str, list[int]] = {}
        for index, statement in enumerate(self.statements):
            if statement.kind == MOVE:
                moves.setdefault(statement.person, []).append(index)
        return moves

    def _two_facts(self) -> list[FactQuestion]:
        """Objects that were carried from one place to another: the last move made with one tells where it is."""
        evidence: dict[str, list[int]] = {}
        place: dict[str, str] = {}
        carried: dict[str, set[str]] = {}  # by person
        for index, statement in enumerate(self.statements):
            hands = carried.setdefault(statement.person, set())
            if statement.kind == MOVE:
                for thing in hands:
                    evidence[thing].append(index)
                    place[thing] = statement.thing
                continue
            evidence.setdefault(statement.thing, []).append(index)
            (hands.add if statement.kind == TAKE else hands.remove)(statement.thing)
        return [
            FactQuestion("two_facts", f"Where is the {thing}?", place[thing], tuple(indices))
            for thing, indices in evidence.items()
            if thing in place
        ]


def simulate(rng: random.Random, n_statements: int, *, n_persons: int | None = None, n_objects: int | None = None) -> Story:
    """Let a world run for `n_statements` events.

    Not every story allows a question of every task: `Story.questions` says which it does.

    n_persons: None for one for every four statements, up to all there are
    n_objects: None for one for every five statements, up to all there are
    """
    n_persons = n_persons or max(1, min(len(PERSONS), n_statements // 4))
    n_objects = n_objects or max(1, min(len(OBJECTS), n_statements // 5))
    persons = rng.sample(PERSONS, n_persons)
    haunts = {person: rng.sample(PLACES, MAX_PLACES) for person in persons}
    lying: dict[str, str | None] = dict.fromkeys(rng.sample(OBJECTS, n_objects))  # where; None: seen by nobody so far
    at: dict[str, str] = {}
    carried: dict[str, list[str]] = {person: [] for person in persons}
    statements = []
    for _ in range(n_statements):
        person = rng.choice(persons)
        here = at.get(person)
        hands = carried[person]
        kind, chance = MOVE, rng.random()
        if here is not None and chance < 0.25:
            within_reach = [thing for thing, where in lying.items() if where is None or where == here]
            if within_reach:
                kind, thing = TAKE, rng.choice(within_reach)
                del lying[thing]
                hands.append(thing)
        elif hands and chance > 0.75:
            kind, thing = DROP, hands.pop(rng.randrange(len(hands)))
            lying[thing] = here
        if kind == MOVE:
            thing = at[person] = rng.choice([place for place in haunts[person] if place != here])
        statements.append(Statement(f"{person} {rng.choice(VERBS[kind])} the {thing}.", kind, person, thing))
    return Story(tuple(statements))
