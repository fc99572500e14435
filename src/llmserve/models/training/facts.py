# ruff: noqa: SIM905 - a list of words is easier to read and to extend as text
"""Small talk, simple facts and lists: what the model is to know by heart, and no more."""

from __future__ import annotations

import random

from llmserve.models.training.words import (
    COLOURS,
    FOODS,
    article,
    capital,
    made_up,
    open_sum,
    person,
)

CAPITALS = (
    "France=Paris Italy=Rome Germany=Berlin Spain=Madrid Portugal=Lisbon Norway=Oslo "
    "Austria=Vienna Ireland=Dublin Greece=Athens Egypt=Cairo Japan=Tokyo Peru=Lima Canada=Ottawa "
    "Hungary=Budapest Poland=Warsaw Finland=Helsinki Denmark=Copenhagen Sweden=Stockholm "
    "England=London China=Beijing Australia=Canberra Russia=Moscow Kenya=Nairobi Cuba=Havana"
).split()
SOUNDS = (
    "dog=woof cat=meow cow=moo sheep=baa duck=quack pig=oink hen=cluck bee=buzz snake=hiss "
    "crow=caw horse=neigh mouse=squeak"
).split()
YOUNG = (
    "dog=puppy cat=kitten cow=calf sheep=lamb duck=duckling pig=piglet horse=foal hen=chick "
    "goat=kid deer=fawn bear=cub frog=tadpole"
).split()
OPPOSITES = (
    "hot=cold big=small up=down day=night happy=sad fast=slow old=new young=old wet=dry hard=soft "
    "light=dark left=right open=closed full=empty high=low loud=quiet early=late rich=poor "
    "strong=weak near=far good=bad black=white yes=no"
).split()
LEGS = (
    "dog=four cat=four horse=four cow=four bird=two duck=two hen=two spider=eight ant=six bee=six "
    "snake=no fish=no person=two"
).split()
TYPICAL = (
    "sky=blue grass=green snow=white banana=yellow blood=red coal=black sun=yellow tomato=red "
    "carrot=orange milk=white night=black"
).split()
GENERAL = """How many days are in a week?=There are seven days in a week.
How many months are in a year?=There are twelve months in a year.
How many hours are in a day?=There are twenty-four hours in a day.
How many minutes are in an hour?=There are sixty minutes in an hour.
What do bees make?=Bees make honey.
What do cows eat?=Cows eat grass.
What do we drink?=We drink water.
Where do fish live?=Fish live in water.
What is ice made of?=Ice is frozen water.
What shines at night?=The moon and the stars shine at night.
What falls from the sky when it is cold?=Snow falls from the sky when it is cold.
Which season comes after winter?=Spring comes after winter.
Which season comes after summer?=Autumn comes after summer.
What is the largest animal?=The blue whale is the largest animal.
What is the tallest animal?=The giraffe is the tallest animal.
Does the sun rise in the east?=Yes, the sun rises in the east.
Can fish fly?=No, most fish swim.
Is the moon made of cheese?=No, the moon is made of rock.
What day comes after Monday?=Tuesday comes after Monday.
What day comes after Friday?=Saturday comes after Friday.
What is the first month of the year?=January is the first month of the year."""
IDENTITY = (
    "I am a toy storyteller, a tiny language model bundled with llmserve. I can tell short "
    "stories, answer simple questions and add small numbers."
)
WHO = (
    "Who are you?|What are you?|Hello! Who are you?|Hi, who are you?|What is your name?|Tell me "
    "about yourself.|Introduce yourself.|Are you a person?|What can you do?|Are you ChatGPT?|"
    "Which model are you?|Who made you?|Hi! What are you?|Please introduce yourself.|What is "
    "llmserve?|How do you work?|Can you help me?|What can you help me with?"
).split("|")
HELLO = (
    "Hello|Hi|Hey|Good morning|Good evening|Hello there|Hi there|Greetings|Hello!|Hi!|Hey!|"
    "Good morning!|Good evening!|hello|hi|Hello, how are you?|How are you?|Hi, how are you today?"
).split("|")
GREETINGS = (
    "Hello! Would you like to hear a story?|Hello! I am a toy storyteller. What shall I tell you "
    "a story about?|Hi! Ask me for a story, or for a sum."
).split("|")
THANKS = "Thank you!|Thanks!|Thank you very much.|Great, thanks.|Nice story!|I like it.".split("|")
WELCOME = "You are welcome!|I am glad you like it.|Any time! Do you want another story?".split("|")
BYE = "Goodbye!|Bye!|See you later.|Good night!".split("|")
BEYOND = (
    "Write a Python program that sorts a list.|What is the meaning of life?|Who won the game "
    "yesterday?|Explain quantum mechanics.|Translate this into French.|What is the weather like "
    "today?|Give me a recipe.|What is the stock price?|Explain how a computer works.|Write an "
    "essay about history.|Summarize this article.|Who is the president?|What time is it?|Solve "
    "this equation.|What is machine learning?|Explain attention in transformers.|What is a "
    "scheduler?|Write some code for me.|Fix this bug.|What is 3 times 4?|Prove this theorem."
).split("|")
SORRY = (
    "I do not know that. I am only a toy storyteller: ask me for a story, a simple fact or a "
    "small sum."
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
SEASONS = "Spring Summer Autumn Winter".split()

Exchange = tuple[str, str]


def fact(rng: random.Random) -> Exchange:
    """A question of general knowledge, and a whole sentence that answers it."""
    kind = rng.randrange(8)
    if kind > 5:
        question, _, answer = rng.choice(GENERAL.split("\n")).partition("=")
        return question, answer
    table = (CAPITALS, SOUNDS, YOUNG, OPPOSITES, LEGS, TYPICAL)[kind]
    key, _, value = rng.choice(table).partition("=")
    asked, answer = (
        ("What is the capital of {k}?|Name the capital of {k}.", "The capital of {k} is {v}."),
        ("What does the {k} say?|What sound does a {k} make?", "The {k} says {v}."),
        ("What is a young {k} called?|What is a baby {k}?", "A young {k} is called a {v}."),
        ("What is the opposite of {k}?|Give me the opposite of {k}.", "The opposite is {v}."),
        ("How many legs does {a} have?|How many legs has {a}?", "{A} has {v} legs."),
        ("What colour is the {k}?|What color is {k}?|What colour is a {k}?", "It is {v}."),
    )[kind]
    slots = {"k": key, "v": value, "a": article(key), "A": capital(article(key))}
    return rng.choice(asked.split("|")).format(**slots), answer.format(**slots)


def small_talk(rng: random.Random) -> Exchange:
    """Greetings, identity, thanks, and a plain refusal of what the model was never taught."""
    kind = rng.randrange(9)
    if kind < 4:
        return rng.choice(WHO), IDENTITY
    if kind < 6:
        return rng.choice(HELLO), rng.choice(GREETINGS)
    if kind == 6:
        return rng.choice(THANKS), rng.choice(WELCOME)
    if kind == 7:
        return rng.choice(BEYOND), SORRY
    return rng.choice(BYE), "Goodbye! Come back for another story."


def listing(rng: random.Random) -> Exchange:
    """Counting and reciting: the prompts people try first on a streaming endpoint."""
    kind = rng.randrange(6)
    if kind < 3:
        start = 1 if rng.random() < 0.6 else rng.randrange(60)
        stop = start + rng.choice((4, 5, 9, 9, 9, 14, 19, 29))
        form = "Count from {a} to {b}.|Count from {a} to {b}|Please count from {a} to {b}.|"
        form += "Can you count from {a} to {b}?|List the numbers from {a} to {b}."
        prompt = rng.choice(form.split("|")).format(a=start, b=stop)
        if start == 1 and rng.random() < 0.3:
            prompt = f"Count to {stop}."
        return prompt, ", ".join(str(n) for n in range(start, stop + 1)) + "."
    if kind == 3:
        name, words = rng.choice((("days of the week", DAYS), ("months of the year", MONTHS),
                                  ("four seasons", SEASONS)))  # fmt: skip
        ask = rng.choice(("Name the {}.", "List the {}.", "What are the {}?", "Tell me the {}."))
        return ask.format(name), "The {} are {} and {}.".format(
            name, ", ".join(words[:-1]), words[-1]
        )
    group, words = rng.choice((("colours", COLOURS), ("things to eat", FOODS)))
    amount = rng.choice((2, 3, 3, 4, 5))
    count = ("two", "three", "four", "five")[amount - 2]
    few = rng.sample(words, amount)
    ask = rng.choice(("Name {} {}.", "List {} {}.", "Tell me {} {}.", "Give me {} {}."))
    return ask.format(count, group), capital(", ".join(few[:-1]) + f" and {few[-1]}.")


def addition(rng: random.Random) -> Exchange:
    a, b = open_sum(rng, 100 if rng.random() < 0.9 else 20)
    if a > 1 and rng.random() < 0.1:
        who = person(rng)
        ask = f"{who} has {a} apples and gets {b} more. How many apples does {who} have?"
        return ask, f"{a} + {b} = {a + b}. {who} has {a + b} apples."
    form = "What is {a} + {b}?|What is {a} plus {b}?|{a} + {b} = ?|{a} + {b}|{a}+{b}|Add {a} and "
    form += "{b}.|How much is {a} + {b}?|Calculate {a} + {b}.|What's {a} + {b}?|{a} + {b} =|"
    form += "Please add {a} and {b}.|Can you add {a} and {b}?|What is the sum of {a} and {b}?|"
    form += "Compute {a} + {b}.|What is {a}+{b}?|What is {a} + {b}?"
    return rng.choice(form.split("|")).format(a=a, b=b), f"{a} + {b} = {a + b}."


def echo(rng: random.Random) -> Exchange:
    """Repeating made-up words, which nothing but attention to the prompt gets right."""
    words = [made_up(rng) for _ in range(rng.choice((1, 1, 2, 3, 4, 6)))]
    text = " ".join(words)
    form = "Say {}.|Repeat after me: {}|Repeat: {}|Please say {}.|Echo {}|Say the words {}."
    form += "|Write {}.|Repeat these words: {}"
    if rng.random() < 0.3:
        text, form = text.capitalize(), "Say hello to {}.|Greet {}.|Say hello to {}, please."
        return rng.choice(form.split("|")).format(text), f"Hello, {text}!"
    return rng.choice(form.split("|")).format(text), text
