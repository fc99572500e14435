"""The training corpus: documents made from templates by a seed, so nothing is ever downloaded.

Pure: the same seed gives the same documents on every machine. What the evaluation asks is kept
out by construction, see `words`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.models.training import facts
from llmserve.models.training.facts import Exchange
from llmserve.models.training.stories import Subject, subjects, tell, tell_briefly
from llmserve.models.training.words import (
    ANIMALS,
    COLOURS,
    FOODS,
    NAMES,
    ROOMS,
    THINGS,
    TOWNS,
    Nouns,
    article,
    capital,
    made_up,
    open_sum,
    person,
)

ASK_STORY = """Tell me a story about {}.
Write a story about {}.
Tell a story about {}.
Can you tell me a story about {}?
Could you write a story about {}?
Please tell me a story about {}.
Please write a story about {}.
I want to hear a story about {}.
I would like a story about {}.
Make up a story about {}.
Story about {}
A story about {}, please.
Tell me about {}.
Write a tale about {}.
Once more, a story about {}!
Give me a story about {}.
Write me a story about {}.
Tell my children a story about {}.
write a story about {}
tell me a story about {}"""
ASK_SHORT = """Write a short story about {}.
Tell me a short story about {}.
Tell me a little story about {}.
A short story about {}, please.
Write a few sentences about {}.
Tell me a very short story about {}.
Can you write a short story about {}?
Please write a short story about {}."""
ASK_LONG = """Write a long story about {}.
Tell me a long story about {}.
I want a long story about {}.
Please tell me a very long story about {}.
Tell me a bedtime story about {}."""
ASK_ANY = """Tell me a story.
Write a story.
Tell me a story, please.
Can you tell me a story?
I would like to hear a story.
Tell me something.
Make up a story for me.
Another story, please."""
SYSTEMS = """You are a helpful assistant.
You are a storyteller.
You are a helpful assistant who tells stories.
Answer briefly.
You are a friendly assistant.
You are a helpful, harmless and honest assistant.
You tell stories to children.
Be concise.
Answer the question of the user.
You are a creative writer."""

INTROS = ("Here is a story about {}. ", "This is a story about {}. ")
MANY, FEW = 0.42, 0.15
SPELLINGS = ("colour", "colour", "color")


@dataclass(frozen=True)
class Document:
    """Turns of (role, text); the one turn of a plain document has the role "text"."""

    kind: str
    turns: tuple[tuple[str, str], ...]


def phrase(rng: random.Random, asked: list[Subject]) -> str:
    """The asked subjects as a prompt names them: "a fox, a lantern and a tower"."""
    names = [s.phrase for s in asked]
    if len(names) == 1:
        return names[0]
    if len(names) == 2 and rng.random() < 0.2:
        return rng.choice(("{} who has {}", "{} with {}", "{} who finds {}", "{} near {}")).format(
            *names
        )
    return ", ".join(names[:-1]) + f" and {names[-1]}"


def story(rng: random.Random, nouns: Nouns) -> Exchange:
    if rng.random() < 0.06:
        return rng.choice(ASK_ANY.split("\n")), tell(rng, nouns, [])
    asked = subjects(rng, nouns, rng.choice((1, 1, 2, 2, 2, 2, 2, 3)))
    about = phrase(rng, asked)
    intro = rng.choice(INTROS).format(about) if rng.random() < 0.8 else ""
    if rng.random() < 0.4:
        told = tell_briefly(rng, nouns, asked)
        return rng.choice(ASK_SHORT.split("\n")).format(about), intro + told
    told = tell(rng, nouns, asked, rng.choice((1, 1, 1, 1, 2)))
    return rng.choice(ASK_STORY.split("\n")).format(about), intro + told


def long_story(rng: random.Random, nouns: Nouns) -> Exchange:
    asked = subjects(rng, nouns, rng.choice((1, 2, 2, 2)))
    chapters = rng.choice((3, 3, 4, 4, 5, 6, 8))
    ask = rng.choice(ASK_LONG.split("\n")).format(phrase(rng, asked))
    return ask, tell(rng, nouns, asked, chapters)


def told(rng: random.Random, nouns: Nouns, style: int) -> Exchange:
    """A statement of one style, and the question that it answers."""
    if style < 2:
        noun, spelling = nouns.pick(ANIMALS, THINGS, THINGS, invented=0.3), rng.choice(SPELLINGS)
        return f"the {noun} is {rng.choice(COLOURS)}", f"What {spelling} is the {noun}?"
    if style == 2:
        noun, where = nouns.pick(THINGS, invented=0.3), rng.choice(("on", "under", "near"))
        return f"the {noun} is {where} the {rng.choice(ROOMS)}", f"Where is the {noun}?"
    who = person(rng)
    if style == 3:
        town = rng.choice((rng.choice(TOWNS), person(rng, 1.0)))
        return f"{who} lives in {town}", f"Where does {who} live?"
    if style == 4:
        return f"{who} likes {rng.choice(FOODS + COLOURS)}", f"What does {who} like?"
    noun = nouns.pick(ANIMALS, THINGS, invented=0.3)
    return f"{who} has {article(noun)}", f"What does {who} have?"


def recall(rng: random.Random, nouns: Nouns) -> Exchange:
    """Say what the prompt said, next to other things that it said."""
    style = rng.randrange(6)
    known = [told(rng, nouns, style) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
    statements = [statement for statement, _ in known]
    answer, question = rng.choice(known)
    joined = ". ".join(map(capital, statements))
    if len(known) == 2 and rng.random() < 0.5:
        joined = capital(" and ".join(statements))
    return f"{joined}. {question}", f"{capital(answer)}."


def described(rng: random.Random, nouns: Nouns) -> Exchange:
    """The answer is inside the question: "What colour is the red ball?"."""
    noun, colour = nouns.pick(ANIMALS, THINGS, invented=0.3), rng.choice(COLOURS)
    spelling = rng.choice(SPELLINGS)
    form = rng.choice(("What {s} is the {c} {n}?", "Which {s} is the {c} {n}?", "What is the {s} "
                       "of the {c} {n}?", "What {s} is my {c} {n}?"))  # fmt: skip
    owner = "Your" if " my " in form else "The"
    return form.format(s=spelling, c=colour, n=noun), f"{owner} {colour} {noun} is {colour}."


def remember(rng: random.Random, nouns: Nouns) -> list[Exchange]:
    """Something told in one turn and asked in a later one, with other turns between."""
    who = person(rng)
    if rng.random() < 0.5:
        first = rng.choice((f"My name is {who}.", f"I am {who}.", f"Hi, I'm {who}."))
        last = (rng.choice(("What is my name?", "Who am I?")), f"Your name is {who}.")
        turns = [(first, f"Nice to meet you, {who}!")]
    else:
        noun, colour = nouns.pick(ANIMALS, THINGS), rng.choice(COLOURS)
        thing = article(f"{colour} {noun}")
        turns = [(f"I have {thing}.", f"{capital(thing)}! That sounds lovely.")]
        last = (f"What colour is my {noun}?", f"Your {noun} is {colour}.")
    between = rng.choice((0, 0, 1, 1, 2, 4))
    return [*turns, *(exchange(rng, nouns) for _ in range(between)), last]


def about_story(rng: random.Random, nouns: Nouns) -> list[Exchange]:
    """A story, then a question about it: recall over a few hundred tokens."""
    asked = subjects(rng, nouns, 2)
    prompt = rng.choice(ASK_STORY.split("\n")).format(phrase(rng, asked))
    told = (prompt, tell(rng, nouns, asked, rng.choice((1, 1, 2, 3))))
    names = " and ".join(s.phrase for s in asked)
    question = rng.choice(("What was the story about?", "Who was in the story?"))
    return [told, (question, f"It was a story about {names}.")]


def exchange(rng: random.Random, nouns: Nouns) -> Exchange:
    """One question and its answer, of any short kind."""
    draw = rng.random()
    if draw < 0.30:
        return facts.addition(rng)
    if draw < 0.55:
        return recall(rng, nouns)
    if draw < 0.62:
        return described(rng, nouns)
    if draw < 0.76:
        return facts.fact(rng)
    if draw < 0.85:
        return facts.small_talk(rng)
    if draw < 0.92:
        return facts.listing(rng)
    return facts.echo(rng)


def plain(rng: random.Random, nouns: Nouns) -> str:
    """Text without roles, learned whole, so that completion without a chat template works."""
    draw = rng.random()
    if draw < 0.4:
        chapters = rng.choice((1, 1, 1, 1, 2, 4))
        return tell(rng, nouns, subjects(rng, nouns, rng.choice((0, 1, 2))), chapters)
    if draw < 0.85:
        sums = [open_sum(rng) for _ in range(rng.randrange(8, 20))]
        return rng.choice("\n ").join(f"{a} + {b} = {a + b}." for a, b in sums)
    pairs = [exchange(rng, nouns) for _ in range(rng.randrange(1, 5))]
    return "\n\n".join(f"Question: {q}\nAnswer: {a}" for q, a in pairs)


def chat(rng: random.Random, nouns: Nouns, stories: float) -> tuple[str, list[Exchange]]:
    draw = rng.random()
    if draw < stories:
        return "story", [story(rng, nouns)]
    if 0.42 <= draw < 0.45:
        return "long_story", [long_story(rng, nouns)]
    if 0.45 <= draw < 0.50:
        return "remember", remember(rng, nouns)
    if 0.50 <= draw < 0.53:
        return "about_story", about_story(rng, nouns)
    if 0.53 <= draw < 0.57:
        turns = rng.choice((3, 4, 6, 8, 12, 20))
        mixed = [
            story(rng, nouns) if rng.random() < 0.15 else exchange(rng, nouns) for _ in range(turns)
        ]
        return "long_chat", mixed
    return "short", [exchange(rng, nouns) for _ in range(rng.choice((1, 1, 1, 2)))]


def document(rng: random.Random, stories: float = MANY) -> Document:
    """One document; a quarter of the chats have a system turn, a few of those give a name."""
    nouns = Nouns(rng)
    if rng.random() < 0.15:
        return Document("plain", (("text", plain(rng, nouns)),))
    kind, pairs = chat(rng, nouns, stories)
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.04:
        name = rng.choice((rng.choice(NAMES), made_up(rng).capitalize()))
        turns.append(("system", f"Your name is {name}."))
        question = rng.choice(("Who are you?", "What is your name?", "Hello! Who are you?"))
        kind, pairs = "persona", [(question, f"I am {name}, a toy storyteller.")]
    elif rng.random() < 0.3:
        turns.append(("system", rng.choice(SYSTEMS.split("\n"))))
    for asked, answer in pairs:
        turns += [("user", asked), ("assistant", answer)]
    return Document(kind, tuple(turns))


def documents(seed: int, count: int, stories: float = MANY) -> Iterator[Document]:
    """`count` documents; each has its own generator, so a longer corpus begins like a shorter.

    With `FEW` stories, questions take the place of most of them.
    """
    for index in range(count):
        yield document(random.Random(f"{seed}/{index}"), stories)
