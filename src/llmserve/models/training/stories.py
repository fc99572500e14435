"""Templated stories about what was asked: the nouns of the prompt take the roles of a plot."""

from __future__ import annotations

import random
from dataclasses import dataclass

from llmserve.models.training.plots import ENDINGS, LINKS, NAMING, OPENINGS, PLAIN, PLOTS
from llmserve.models.training.words import (
    ADJECTIVES,
    ANIMALS,
    BEINGS,
    JOBS,
    NAMES,
    PLACES,
    THINGS,
    TRAITS,
    Nouns,
    article,
    capital,
    made_up,
)

FORMS = (("he", "him", "his"), ("she", "her", "her"), ("it", "it", "its"))


@dataclass(frozen=True)
class Subject:
    """Something a story is asked to be about: a noun, how it is described, or a person's name."""

    noun: str
    trait: str = ""
    name: str = ""
    kind: str = ""

    @property
    def role(self) -> str:
        """The part it plays; a made-up noun says by `kind` which, as its letters do not."""
        if self.kind:
            return self.kind
        if self.name or self.noun in BEINGS:
            return "being"
        return "place" if self.noun in PLACES else "thing"

    @property
    def phrase(self) -> str:
        """How a prompt names it: "a brave fox", "a fox named Mira" or "Mira"."""
        if not self.noun:
            return self.name
        bare = article(f"{self.trait} {self.noun}".strip())
        return f"{bare} named {self.name}" if self.name else bare


def subjects(rng: random.Random, nouns: Nouns, count: int) -> list[Subject]:
    """What to ask a story about; made-up nouns are rare and teach copying letter by letter."""
    found = []
    for _ in range(count):
        draw = rng.random()
        name = rng.choice(NAMES) if rng.random() < 0.6 else made_up(rng).capitalize()
        trait = rng.random() < 0.3
        if draw < 0.08:
            found.append(Subject("", "", name))
        elif draw < 0.48:
            noun = nouns.pick(ANIMALS, ANIMALS, JOBS, invented=0.2)
            tag = name if rng.random() < 0.2 else ""
            found.append(Subject(noun, rng.choice(TRAITS) if trait else "", tag, "being"))
        elif draw < 0.83:
            noun = nouns.pick(THINGS, invented=0.2)
            found.append(Subject(noun, rng.choice(ADJECTIVES) if trait else ""))
        else:
            noun = nouns.pick(PLACES, invented=0.2)
            found.append(Subject(noun, rng.choice(ADJECTIVES) if trait else "", kind="place"))
    return found


def cast(rng: random.Random, nouns: Nouns, asked: list[Subject]) -> dict[str, str]:
    """Fill every role of a plot, the asked ones first, and spell each the ways plots need it."""
    free = {role: [s for s in asked if s.role == role] for role in ("being", "thing", "place")}
    hero = free["being"].pop(0) if free["being"] else Subject(nouns.pick(ANIMALS, JOBS))
    friend = free["being"].pop(0) if free["being"] else Subject(nouns.pick(ANIMALS, JOBS))
    thing = free["thing"].pop(0) if free["thing"] else Subject(nouns.pick(THINGS))
    place = free["place"].pop(0) if free["place"] else Subject(nouns.pick(PLACES))
    he, him, his = FORMS[rng.randrange(3) if hero.noun else rng.randrange(2)]
    name = hero.name or rng.choice(NAMES)
    plain = f"the {hero.noun}" if hero.noun else name
    trait = thing.trait or (rng.choice(ADJECTIVES) if rng.random() < 0.5 else "")
    words = {
        "a_hero": hero.phrase if hero.noun else rng.choice((name, f"a child named {name}")),
        "the_hero": plain,
        "hero": plain,
        "name": name,
        "named": "yes" if hero.name else "",
        "a_friend": friend.phrase,
        "friend": f"the {friend.noun}" if friend.noun else friend.name,
        "a_thing": article(f"{trait} {thing.noun}".strip()),
        "a_plain": article(thing.noun),
        "thing": thing.noun,
        "a_place": place.phrase,
        "place": f"the {place.noun}",
        "place_word": place.noun,
        "he": he,
        "him": him,
        "his": his,
    }
    left = [s.phrase for s in (*free["being"], *free["thing"], *free["place"])]
    if left:
        words["extra"] = " and ".join(left)
    return words


def _say(rng: random.Random, line: str, words: dict[str, str]) -> str:
    """One sentence; the hero goes by noun or by name, and a capital key is a capital word."""
    hero = words["name"] if words["named"] and rng.random() < 0.5 else words["the_hero"]
    table = {**words, "hero": hero}
    table |= {capital(key): capital(value) for key, value in table.items()}
    return line.format_map(table)


def _plot(rng: random.Random, words: dict[str, str], name: str, chatter: float) -> list[str]:
    lines = []
    for beat in PLOTS[name]:
        lines.append(_say(rng, rng.choice(beat.split("|")), words))
        if rng.random() < chatter:
            lines.append(_say(rng, rng.choice(PLAIN.split("\n")), words))
    return lines


def tell(rng: random.Random, nouns: Nouns, asked: list[Subject], chapters: int = 1) -> str:
    """A story of one paragraph per chapter; one chapter is about ten sentences."""
    words = cast(rng, nouns, asked)
    lines = [_say(rng, rng.choice(OPENINGS.split("\n")), words)]
    if words["a_hero"].startswith("a") and not words["named"] and rng.random() < 0.5:
        lines.append(_say(rng, rng.choice(NAMING.split("\n")), words))
        words["named"] = "yes"
    if "extra" in words:
        lines.append(f"There was also {words['extra']}.")
    plots = [name for _ in range(chapters) for name in rng.sample(sorted(PLOTS), len(PLOTS))]
    lines += _plot(rng, words, plots[0], 0.15)
    paragraphs = [lines]
    words["a_friend"], words["a_thing"] = words["friend"], "the {thing}".format_map(words)
    for name in plots[1:chapters]:
        link = _say(rng, rng.choice(LINKS.split("\n")), words)
        paragraphs.append([link, *_plot(rng, words, name, 0.2)])
    paragraphs[-1].append(_say(rng, rng.choice(ENDINGS.split("\n")), words))
    return "\n\n".join(" ".join(lines) for lines in paragraphs)


def tell_briefly(rng: random.Random, nouns: Nouns, asked: list[Subject]) -> str:
    """Three or four sentences, for prompts that ask for a short story."""
    words = cast(rng, nouns, asked)
    name = rng.choice(("find", "gift", "lose", "mend", "quarrel"))
    plot = PLOTS[name]
    beats = [plot[0], plot[1], plot[-2], plot[-1]] if "extra" not in words else plot
    lines = [rng.choice(OPENINGS.split("\n")), *(rng.choice(beat.split("|")) for beat in beats)]
    if name != "gift" and words["friend"] != words["a_friend"]:
        lines.insert(1, capital("{Hero} had a friend, " + words["a_friend"] + "."))
        words["a_friend"] = words["friend"]
    if "extra" in words:
        lines.insert(1, "There was also {extra}.")
    return " ".join(_say(rng, line, words) for line in lines)
