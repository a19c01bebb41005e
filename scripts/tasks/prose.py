"""Built-in prose: a small grammar of village life, so that a background needs no download.

Each paragraph follows one person (never named, so never one of the story's) through a few sentences.
"""

from __future__ import annotations

import random

PEOPLE = (
    "baker teacher sailor doctor farmer painter widow carpenter gardener clerk shepherd miller traveller poet judge "
    "tailor fisherman blacksmith weaver merchant student piper watchman cook ferryman printer beekeeper notary mason "
    "postman"
).split()
MANNERS = (
    "old young patient stubborn cheerful quiet clever tired proud gentle curious careful restless honest lonely "
    "absent-minded good-natured silent"
).split()
THINGS = (
    "a letter|a broken clock|a basket of pears|an unpaid bill|a pair of boots|the price of wool|a lost key|a long song|"
    "the sound of the bells|a map of the coast|the colour of the hills|an old promise|a bowl of soup|a torn sail|"
    "the shape of the clouds|a new roof|an unfinished book|a cup of tea|a strange coin|the smell of fresh bread|"
    "a story about wolves|the empty road|a quarrel between neighbours|a jar of honey|the end of the summer"
).split("|")
PLACES = (
    "by the river|under the chestnut tree|on the stone bridge|behind the mill|near the lighthouse|at the edge of the "
    "forest|in the narrow lane|beside the well|on the far side of the valley|below the castle wall|along the shore|"
    "in front of the inn|among the reeds|at the top of the hill|between the two barns|in the shade of the old wall"
).split("|")
TIMES = (
    "in the morning|before sunrise|after the rain|on market days|towards evening|all through the winter|that spring|"
    "every Sunday|late at night|during the harvest|at noon|for the third time that week|once the snow had melted|"
    "when the fair was over|a little after midnight|as the tide turned"
).split("|")
WEATHER = (
    "The wind turned to the north|A thin fog lay over the fields|It had rained since dawn|The sky was clear and very "
    "high|Snow fell without a sound|The heat made the road shimmer|Clouds gathered above the pass|The first frost came "
    "early|Thunder rolled somewhere far off|A pale sun stood over the water|The air smelled of hay|Leaves drifted down"
).split("|")
FEELINGS = (
    "with a kind of quiet joy|without knowing why|as if nothing had happened|more from habit than from hope|half in "
    "jest|to everybody's surprise|with great care|and smiled|and said nothing|and sighed|with a shrug|rather too "
    "quickly|as people do who have time|in spite of the cold"
).split("|")
DEEDS = (
    "thought about {thing}|spoke of {thing}|would not hear of {thing}|dreamed of {thing}|argued over {thing}|laughed "
    "about {thing}|wrote a few lines on {thing}|asked a stranger about {thing}|remembered {thing}|had forgotten {thing}|"
    "waited {place}|sat {place}|sang {place}|slept for an hour {place}|met an old friend {place}|counted the boats "
    "{place}|listened to the birds {place}|mended a fence {place}|stood {place} and looked at {thing}"
).split("|")
SAYINGS = (
    "Nothing is as heavy as {thing}|One should never trust {thing}|There is always {thing} for those who wait|Who "
    "could have expected {thing}|We were happier before {thing}|It began {place}, and it will end there|I saw it "
    "myself, {place}|Tell them about {thing}|Nobody stays {place} for long|My father gave everything for {thing}"
).split("|")
PATTERNS = (
    "{subject} {deed}.",
    "{subject} {deed} {feeling}.",
    "{Time}, {subject_low} {deed}.",
    "{subject} {deed}, and then {deed2}.",
    "{weather}, but {subject_low} {deed} {feeling}.",
    "{weather} {time}.",
    "{weather}, and {place} the grass was wet.",
    "Some said that {subject_low} {deed}; others had only heard of {thing}.",
    "“{saying},” said {subject_low}, {feeling_plain}.",
    "“{saying}!”",
    "Was it {thing}, or was it {thing2}?",
    "Of all that was to be seen {place}, {thing} mattered least.",
    "{Time} one could hear {subject_low}, who {deed}.",
    "It was said that {thing} and {thing2} had the same cause.",
    "Nobody in the village {deed} {time}.",
)


def prose(rng: random.Random, n_sentences: int) -> list[str]:
    """`n_sentences` sentences in paragraphs of three to nine, each with the white space that follows it."""
    sentences: list[str] = []
    while len(sentences) < n_sentences:
        who = f"the {rng.choice(MANNERS)} {rng.choice(PEOPLE)}"
        pronoun = rng.choice(("he", "she"))
        for position in range(min(rng.randint(3, 9), n_sentences - len(sentences))):
            sentences.append(_sentence(rng, who if position == 0 or rng.random() < 0.3 else pronoun) + " ")
        sentences[-1] = sentences[-1][:-1] + "\n\n"
    return sentences


def _sentence(rng: random.Random, subject: str) -> str:
    def pick(options: list[str]) -> str:
        return rng.choice(options).format(thing=rng.choice(THINGS), place=rng.choice(PLACES))

    time = rng.choice(TIMES)
    return rng.choice(PATTERNS).format(
        subject=subject[0].upper() + subject[1:],
        subject_low=subject,
        deed=pick(DEEDS),
        deed2=pick(DEEDS),
        thing=rng.choice(THINGS),
        thing2=rng.choice(THINGS),
        place=rng.choice(PLACES),
        time=time,
        Time=time[0].upper() + time[1:],
        weather=rng.choice(WEATHER),
        feeling=rng.choice(FEELINGS),
        feeling_plain=rng.choice(FEELINGS).removeprefix("and "),
        saying=pick(SAYINGS),
    )
