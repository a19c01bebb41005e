"""Documents of a wanted length: facts of a task hidden in background sentences, reproducible from a seed.

The facts of a seed do not depend on the length or the background, so the same story can be asked about at 1K and 8K.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from model.errors import InputError
from tasks.background import Background
from tasks.common_words import COMMON_WORDS_TASKS, frequencies, word_list
from tasks.document import Document, FactQuestion, Question, Span
from tasks.needles import MAX_NEEDLES, NEEDLE_TASKS, Needles, make_needles
from tasks.story import STORY_TASKS, Story, simulate

TASKS: dict[str, str] = {**STORY_TASKS, **NEEDLE_TASKS, **COMMON_WORDS_TASKS}

N_FACTS = 12  # by default; the same at every length, as in BABILong
N_TRIES = 200  # stories thrown away before we say that the questions asked for cannot be had

CountTokens = Callable[[str], int]


def hide(sentences: Sequence[str], facts: Sequence[str], rng: random.Random) -> tuple[str, list[Span]]:
    """Put the facts, in their order, at random boundaries between the sentences.

    Every sentence must carry the white space that follows it, as those of `Background.passage` do. A fact becomes an
    ordinary sentence between single spaces; after a paragraph break it opens the next paragraph.
    Returns the text, and for each fact its span: text[start:end] is the fact.
    """
    pieces: list[str] = []
    spans: list[Span] = []
    length = previous = 0
    for fact, boundary in zip(facts, sorted(rng.choices(range(len(sentences) + 1), k=len(facts))), strict=True):
        before = "".join(sentences[previous:boundary])
        start = length + len(before)
        length = start + len(fact) + 1
        pieces += (before, fact, " ")
        spans.append((start, length - 1))
        previous = boundary
    pieces += sentences[previous:]
    return "".join(pieces).rstrip(), spans


def make_document(
    task_names: str | Sequence[str],
    *,
    seed: int,
    n_tokens: int,
    count_tokens: CountTokens,
    background: Background,
    n_questions: int = 1,
    n_statements: int | None = None,
) -> Document:
    """One document of at most `n_tokens` tokens, as close to that as whole sentences allow (within 5%).

    task_names: names from TASKS; question i is of the i-th of them, starting over at the end. Story tasks may be mixed
        with one another, and so may needle tasks
    seed: the same seed and arguments give the same document
    n_tokens: the length of the document's text, in tokens as `count_tokens` counts them
    background: the sentences around the facts; lists of common words have none
    n_questions: how many different questions on this one document
    n_statements: facts in the document; None for N_FACTS, which is 12
    Raises InputError for an unknown task, tasks that cannot share a document, numbers of questions or statements that
    cannot be had, and facts that do not fit.
    """
    names = [task_names] if isinstance(task_names, str) else list(task_names)
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        given = repr(unknown[0]) if unknown else "an empty list of tasks"
        raise InputError(f"There is no task {given}; choose among {', '.join(TASKS)}.")
    if n_questions < 1:
        raise InputError(f"The number of questions is {n_questions}; ask at least one.")
    wanted = [names[i % len(names)] for i in range(n_questions)]
    name = "+".join(names)
    meta = {"tasks": tuple(names), "n_tokens": n_tokens}
    if set(names) <= set(COMMON_WORDS_TASKS):
        if n_questions > 1:
            raise InputError(f"A common-words list allows 1 question, not {n_questions}; make more documents instead.")
        text, question = _fit_words(random.Random(f"{name}-{seed}"), n_tokens, count_tokens)
        return Document(text, (question,), seed, meta)

    if set(names) <= set(STORY_TASKS):
        make: Callable[[random.Random, int], Story | Needles] = simulate
    elif set(names) <= set(NEEDLE_TASKS):
        make = make_needles
    else:
        raise InputError(f"The tasks {', '.join(names)} cannot share a document; make one document for each kind.")
    n_facts = N_FACTS if n_statements is None else n_statements
    if n_facts < 1 or (make is make_needles and n_facts > MAX_NEEDLES):
        raise InputError(f"{n_facts} statements are asked for; give at least 1, and at most {MAX_NEEDLES} needles.")
    facts, questions = _facts(make, wanted, random.Random(f"{name}-{seed}"), n_facts)
    text, spans = _fit(facts, random.Random(f"{name}-{seed}-background"), n_tokens, count_tokens, background)
    return Document(text, tuple(question.placed(spans) for question in questions), seed, meta)


def _facts(
    make: Callable[[random.Random, int], Story | Needles], wanted: list[str], rng: random.Random, n_facts: int
) -> tuple[list[str], list[FactQuestion]]:
    """Facts that allow the wanted questions, and the questions: worlds are drawn until one does."""
    for _ in range(N_TRIES):
        world = make(rng, n_facts)
        choices = {task: world.questions(task) for task in dict.fromkeys(wanted)}
        if all(len(choices[task]) >= wanted.count(task) for task in choices):
            for found in choices.values():
                rng.shuffle(found)
            return world.texts, [choices[task].pop() for task in wanted]
    raise InputError(
        f"No {n_facts} statements were found that allow {len(wanted)} questions ({', '.join(dict.fromkeys(wanted))}); "
        "ask for more statements or fewer questions."
    )


def _fit(
    facts: list[str], rng: random.Random, n_tokens: int, count_tokens: CountTokens, background: Background
) -> tuple[str, list[Span]]:
    """Facts hidden in as many sentences as n_tokens holds."""
    least = count_tokens(" ".join(facts))
    if least > n_tokens:
        raise InputError(f"The facts alone take {least} tokens of {n_tokens}; allow more tokens or fewer statements.")
    place_seed = rng.random()

    def text_of(sentences: Sequence[str]) -> tuple[str, list[Span]]:
        return hide(sentences, facts, random.Random(place_seed))

    n_chars = 6 * n_tokens + 10_000  # more than will fit, so that there are short sentences to choose from
    passage = background.passage(rng, n_chars)
    while (whole := count_tokens(text_of(passage)[0])) <= n_tokens:
        n_chars *= 2
        passage = background.passage(rng, n_chars)
    # The longest beginning of the passage that fits, by bisection; then shorter sentences for the room that is left.
    low, high = 0, len(passage)
    while high - low > 1:
        middle = (low + high) // 2
        if count_tokens(text_of(passage[:middle])[0]) <= n_tokens:
            low = middle
        else:
            high = middle
    kept, rest = passage[:low], passage[low + 1 :]
    used = count_tokens(text_of(kept)[0])
    chars_per_token = sum(map(len, passage)) / whole
    for sentence in sorted(rest, key=len, reverse=True):
        if n_tokens - used <= n_tokens // 100:
            break
        if len(sentence) <= (n_tokens - used) * chars_per_token * 1.3:
            longer = count_tokens(text_of([*kept, sentence])[0])
            if longer <= n_tokens:
                kept, used = [*kept, sentence], longer
    return text_of(kept)


def _fit_words(rng: random.Random, n_tokens: int, count_tokens: CountTokens) -> tuple[str, Question]:
    """The common-words list with as many uncommon words as n_tokens holds (RULER scales its length so)."""
    common, uncommon = frequencies(n_tokens)
    state = rng.getstate()

    def list_of(n_uncommon: int) -> tuple[str, Question]:
        rng.setstate(state)  # the same words at every length
        return word_list(rng, n_uncommon, common, uncommon)

    least = count_tokens(list_of(1)[0])
    if least > n_tokens:
        raise InputError(f"The shortest common-words list takes {least} tokens of {n_tokens}; allow more tokens.")
    low, high = 1, 2
    while count_tokens(list_of(high)[0]) <= n_tokens:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if count_tokens(list_of(middle)[0]) <= n_tokens:
            low = middle
        else:
            high = middle
    return list_of(low)
