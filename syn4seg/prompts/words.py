"""The word lists of the natural grammar: what a sentence of `GrammarAgent` is made of, by the kind of thing that it is about."""

from __future__ import annotations

from dataclasses import dataclass

OPENINGS = ("a photo of", "a candid photo of", "a detailed photo of")
COUNTS = ("a", "two", "three", "a group of")
VIEWS = (
    "seen from above",
    "seen from below",
    "at eye level",
    "from a distance",
    "in close-up",
    "from behind",
    "from the side",
    "cut off by the edge of the frame",
)
LIGHTS = (
    "overcast light",
    "bright midday sun",
    "golden evening light",
    "soft morning light",
    "at night",
    "backlit",
    "deep shadows",
    "dim warm light",
)
OUTDOORS = (
    "in a meadow",
    "on a gravel path",
    "beside a river",
    "at the edge of a forest",
    "in fresh snow",
    "on a beach",
    "in front of a brick wall",
    "in a garden",
    "in tall grass",
    "under a tree",
    "on a hill",
    "in the rain",
)
STREETS = (
    "on a city street",
    "in a narrow alley",
    "beside a brick wall",
    "on a country road",
    "in a car park",
    "at a crossing",
    "in front of a shop",
    "on a bridge",
    "beside a field",
    "in the snow",
    "under trees",
    "on cobblestones",
)
INDOORS = (
    "on a wooden table",
    "in a kitchen",
    "in a living room",
    "near a window",
    "in an office",
    "on a tiled floor",
    "on a carpet",
    "in a workshop",
    "on a terrace",
    "against a plain wall",
    "in a cafe",
    "in a crowded shop",
)


@dataclass(frozen=True)
class ObjectKind:
    """Words that suit one kind of thing."""

    names: frozenset[str]
    adjectives: tuple[str, ...]
    states: tuple[str, ...]
    places: tuple[str, ...]


def _object_kind(names: str, adjectives: str, states: str, places: tuple[str, ...]) -> ObjectKind:
    adjective, state = (tuple(w.strip() for w in words.split(",")) for words in (adjectives, states))
    return ObjectKind(frozenset(n.strip() for n in names.split(",")), adjective, state, places)


THING = _object_kind(
    "",
    "old, new, red, blue, white, dark, small, large, worn, patterned, shiny, handmade",
    "standing alone, partly hidden, half in shadow, among other things, slightly tilted, in the corner, well in view, beside a box",
    INDOORS,
)
KINDS = (
    _object_kind(
        "person",
        "young, elderly, tall, smiling, tired, bearded, curly-haired, elegant, athletic, serious, cheerful, busy",
        "standing, sitting, walking, running, waiting, talking, laughing, carrying a bag",
        OUTDOORS + STREETS,
    ),
    _object_kind(
        "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, fish",
        "young, old, large, small, brown, black, white, spotted, wet, dusty, slender, sturdy",
        "standing, lying down, walking, running, resting, turning away, facing the camera, partly hidden",
        OUTDOORS,
    ),
    _object_kind(
        "bicycle, car, bus, truck, motorbike, motorcycle",
        "weathered, new, red, blue, white, black, yellow, green, muddy, vintage, silver, small",
        "parked, moving, waiting, turning, partly hidden, slowing down, seen through a fence, behind a puddle",
        STREETS,
    ),
    _object_kind(
        "train",
        "red, blue, yellow, green, silver, old, modern, long, short, dusty, empty, painted",
        "arriving, waiting, passing, slowing down, standing still, leaving, partly hidden, crossing",
        (
            "at a station",
            "on a bridge",
            "in a valley",
            "near a tunnel",
            "in a depot",
            "beside a road",
            "in snow",
            "along a coast",
            "between houses",
            "in open country",
            "at a level crossing",
            "in the mountains",
        ),
    ),
    _object_kind(
        "boat",
        "wooden, white, blue, red, old, new, small, large, rusty, painted, narrow, heavy",
        "moored, drifting, moving, turning, partly hidden, leaning, leaving, arriving",
        (
            "in a harbour",
            "on a calm lake",
            "on a rough sea",
            "at a pier",
            "on a river",
            "near rocks",
            "on a beach",
            "in a canal",
            "in the fog",
            "below a bridge",
            "beside a lighthouse",
            "in a marina",
        ),
    ),
    _object_kind(
        "aeroplane, airplane, kite",
        "white, red, blue, silver, small, large, old, new, striped, yellow, bright, dark",
        "flying, landing, climbing, turning, on the ground, passing, low, partly hidden",
        (
            "in a clear sky",
            "among clouds",
            "above a field",
            "over the sea",
            "above mountains",
            "over a city",
            "near trees",
            "above a runway",
            "in the haze",
            "against the sun",
            "over a beach",
            "in a stormy sky",
        ),
    ),
    _object_kind(
        "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
        "fresh, large, small, sliced, whole, ripe, colourful, half-eaten, home-made, glossy, organic, plain",
        "on a plate, in a bowl, on paper, being served, on a board, in a basket, beside a knife, in a hand",
        (
            "in a kitchen",
            "in a cafe",
            "at a market",
            "on a wooden table",
            "on a picnic blanket",
            "in a bakery",
            "on a marble counter",
            "near a window",
            "in a garden",
            "on a tray",
            "at a party",
            "in a fridge",
        ),
    ),
    _object_kind(
        "traffic light, fire hydrant, stop sign, parking meter, bench",
        "old, new, red, green, yellow, painted, rusty, wet, snowy, tilted, scratched, small",
        "standing alone, partly hidden, among people, behind a car, with stickers, in shadow, beside a bin, in a row",
        STREETS,
    ),
)
