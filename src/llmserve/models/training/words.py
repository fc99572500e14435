# ruff: noqa: SIM905 - a list of words is easier to read and to extend as text
"""The words that documents are made of, and which of them are kept apart for the evaluation.

Three splits make the figures mean something: `HELD_NOUNS` are in no document at all, a noun of
`LEFT` is never in one document with a noun of `RIGHT`, and `held_sum` sets aside pairs of numbers.
"""

from __future__ import annotations

import random
import zlib

ANIMALS = (
    "ant bear beaver bee bird bull butterfly camel cat cow crab crow deer dog dolphin donkey dove "
    "dragon duck eagle elephant fish fox frog giraffe goat goose hamster hare hedgehog hen heron "
    "horse kangaroo kitten koala ladybird lamb lion lizard llama magpie mole monkey mouse octopus "
    "ostrich otter owl panda parrot peacock penguin pig pigeon pony puppy rabbit raccoon rat raven "
    "robin rooster seal shark sheep snail snake sparrow spider squirrel stork swan tiger toad "
    "turtle turkey whale wolf worm zebra badger pelican walrus gecko ferret moose"
).split()
JOBS = (
    "actor artist astronaut baker builder butcher captain carpenter clown cook dancer doctor "
    "driver explorer farmer fisherman gardener giant ghost inventor judge king knight librarian "
    "magician monster musician nurse painter pilot pirate poet postman prince princess queen robot "
    "sailor scientist shepherd shopkeeper singer soldier student teacher thief troll wizard witch "
    "plumber tailor juggler"
).split()
THINGS = (
    "apple arrow axe bag ball balloon banner basket bell bench bicycle blanket boat book boot "
    "bottle bowl box bracelet broom brush bucket button cake camera candle cape card carpet cart "
    "chain chair chest clock cloak coat coin comb cookie crown cup cushion diamond diary doll drum "
    "egg envelope fan feather flag flower flute fork glove goblet guitar hammer harp hat "
    "helmet horn jar jewel kettle key kite knife lamp lantern leaf letter locket lute map marble "
    "mask medal mirror mitten mug necklace needle nest net notebook nut oar orange paintbrush pan "
    "parcel pear pearl pebble pen pencil photograph piano picture pie pipe plate pocket pot potion "
    "pumpkin puppet purse puzzle quilt radio ribbon ring rocket rope rose ruler sack sail sandwich "
    "scarf scroll seed shell shield shoe shovel sled sock spoon stamp statue stick stone stool "
    "suitcase sword table telescope tent thimble thread ticket torch toy train tray tree truck "
    "tulip umbrella vase violin wagon wand watch wheel wreath anchor teapot trumpet compass "
    "pillow ladder whistle saddle"
).split()
PLACES = (
    "airport attic barn bay beach bridge cabin castle cave cellar church circus city cliff "
    "cottage desert factory farm field forest fountain garden hill hospital hotel house hut "
    "island jungle kitchen lake library lighthouse market meadow mill mine mountain museum "
    "orchard palace park path pond port pyramid river road school shop square stable station swamp "
    "temple theatre tower tunnel valley village volcano waterfall well wood zoo windmill harbour "
    "bakery canyon"
).split()
HELD_NOUNS = frozenset(
    (
        "badger pelican walrus gecko ferret moose plumber tailor juggler anchor teapot trumpet "
        "compass pillow ladder whistle saddle windmill harbour bakery canyon"
    ).split()
)
LEFT = frozenset(
    (
        "fox owl rabbit hedgehog penguin wizard pirate knight painter hare heron kite crown "
        "drum violin rocket scarf telescope castle museum tunnel orchard"
    ).split()
)
RIGHT = frozenset(
    (
        "lantern umbrella feather bicycle mirror candle suitcase piano marble lion mole swan "
        "zebra octopus robot dragon witch sailor queen volcano theatre swamp pyramid"
    ).split()
)
COLOURS = "red blue green yellow orange purple pink brown black white grey golden silver".split()
NAMES = (
    "Ada Adam Alice Amir Amy Anna Ben Bella Carlos Clara Dan Daisy David Ella Emma Eva Felix Finn "
    "Fred Grace Hana Harry Hugo Ida Ivan Jack Jane Joe Julia Kai Kate Leo Lily Lucas Lucy Mara Max "
    "Mia Mira Nina Noah Nora Oliver Omar Oscar Paul Peter Pia Rosa Ruby Sam Sara Sofia Theo Tim "
    "Tom Uma Vera Victor Wendy Will Yara Yuki Zoe"
).split()
TOWNS = (
    "London Paris Rome Berlin Madrid Lisbon Oslo Vienna Prague Dublin Athens Cairo Tokyo Delhi "
    "Lima Boston Chicago Toronto Sydney Amsterdam Copenhagen Helsinki Warsaw Budapest"
).split()
ADJECTIVES = (
    "old small big shiny strange beautiful heavy little wonderful magic broken wooden tiny dusty "
    "quiet bright lost precious curious lovely"
).split()
TRAITS = (
    "brave clever kind shy lonely cheerful curious lazy hungry sleepy young old little proud "
    "gentle clumsy friendly silly wise happy sad grumpy tiny"
).split()
FOODS = (
    "bread cheese soup rice pasta honey pizza salad porridge noodles jam chocolate pancakes "
    "apples bananas grapes cherries strawberries carrots potatoes tomatoes mushrooms beans"
).split()
ROOMS = "table shelf floor bed roof desk sofa wall doorstep windowsill carpet counter".split()
NOUNS = frozenset(ANIMALS + JOBS + THINGS + PLACES)
BEINGS = frozenset(ANIMALS + JOBS)
_ONSETS = "b bl br c ch d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk st t tr v w z".split()
_VOWELS = "a e i o u a e i o ai ee oo ou ar or".split()
_CODAS = "b ck d g l ll m n nd nt p r rn s sh st t x z".split() + [""] * 9


def held_sum(a: int, b: int) -> bool:
    """Whether a + b is kept out of every document, in both orders; sums of two digits never are."""
    low, high = sorted((a, b))
    return high > 9 and zlib.crc32(f"{low}+{high}".encode()) % 3 == 0


def open_sum(rng: random.Random, limit: int = 100) -> tuple[int, int]:
    """A pair of numbers that documents may add."""
    while True:
        a, b = rng.randrange(limit), rng.randrange(limit)
        if not held_sum(a, b):
            return a, b


def made_up(rng: random.Random) -> str:
    """A pronounceable word that is in no list: only copying it from the prompt gets it right."""
    parts = [
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 2, 3)))
    ]
    word = "".join(parts)
    return word if len(word) > 3 and word not in NOUNS else made_up(rng)


def person(rng: random.Random, invented: float = 0.4) -> str:
    return made_up(rng).capitalize() if rng.random() < invented else rng.choice(NAMES)


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Nouns:
    """The nouns one document may use: all but the held ones, and only one of the two sides."""

    def __init__(self, rng: random.Random) -> None:
        barred = HELD_NOUNS | (LEFT if rng.random() < 0.5 else RIGHT)
        self._rng = rng
        self._used: set[str] = set()
        self._barred = barred

    def pick(self, *groups: list[str], invented: float = 0.0) -> str:
        """A noun that this document has not used; `invented` is the share of made-up ones."""
        while True:
            if self._rng.random() < invented:
                word = made_up(self._rng)
            else:
                word = self._rng.choice(self._rng.choice(groups))
            if word not in self._barred and word not in self._used:
                self._used.add(word)
                return word
