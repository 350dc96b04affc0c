"""The embedded world: scenes of 16 object classes drawn from a seed, with exact masks and a caption each.

Nothing is downloaded and nothing is stored: an image is a pure function of (seed, split, index). A class is a family of
silhouettes; colour, pattern, size, pose, count, occlusion and background vary freely, so one support image shows only a
small part of a class. Every class has a companion, a class of the same fold that is often beside it, as roads are beside
cars: an image made for one novel class mostly shows another one too. `Scene -> (image, mask)` and `prompt -> Scene` are
both here, so the same code draws the data set and, in `syn4seg.models.renderer`, obeys a prompt exactly.

Conventions: images uint8 (H, W, 3) RGB; masks uint8 (H, W) with 0 background and 1..16 in the order of `CLASSES`;
scene coordinates in [-1, 1], x to the right, y down; angles in radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from syn4seg.errors import UserError
from syn4seg.seeds import seeded

CLASSES: tuple[str, ...] = tuple(
    "ball donut moon heart star cross tent tree bottle fish flower arrow kite mushroom hourglass crown".split()
)
FOLDS = tuple(tuple(range(4 * f + 1, 4 * f + 5)) for f in range(4))
COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 132, 22),
    "yellow": (250, 214, 40),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "purple": (132, 50, 180),
    "pink": (250, 140, 190),
    "white": (245, 245, 245),
}
PATTERNS = ("plain", "striped", "dotted")
BACKGROUNDS = {
    "grass": ((120, 168, 92), (150, 190, 112)),
    "sand": ((214, 190, 148), (232, 212, 172)),
    "sea": ((96, 158, 182), (130, 190, 205)),
    "night": ((22, 26, 52), (44, 48, 84)),
    "brick": ((142, 92, 78), (168, 114, 98)),
    "fog": ((168, 172, 178), (196, 198, 204)),
}
SIZES = ("small", "big")
POSES = ("upright", "tilted")
COUNTS = {"a": 1, "two": 2}
COMPANIONS = {name: CLASSES[i ^ 1] for i, name in enumerate(CLASSES)}
"""Class -> the class that is often beside it, in pairs: ball and donut, moon and heart, ..."""
HABIT = 0.6
"""Share of the data set's scenes with several objects in which the second one is the first one's companion."""
COMPANY = 0.75
"""Share of the grammar's prompts that ask for an object beside the first, and of the images that show one unasked."""
FAITHFUL = 0.9
"""Share of that company which is the companion; the rest is of any other class."""
SIZE = 64  # pixels of an image's side
_OVERSAMPLE = 4


@dataclass(frozen=True)
class SceneObject:
    """One object: class name, appearance words and exact geometry (`radius`, `x`, `y` in scene units)."""

    name: str
    colour: str
    pattern: str
    radius: float
    x: float
    y: float
    angle: float
    aspect: float
    variant: float


@dataclass(frozen=True)
class Scene:
    """Objects from back to front on a background; `grain` seeds background texture and pattern phase."""

    things: tuple[SceneObject, ...]
    background: str
    grain: int


def _polar(radius: np.ndarray, start: float = -math.pi / 2) -> np.ndarray:
    angle = start + np.linspace(0, 2 * math.pi, len(radius), endpoint=False)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _mirror(half: list[tuple[float, float]]) -> np.ndarray:
    """Close a right half (from top to bottom) with its mirror image."""
    right = np.array(half)
    return np.concatenate([right, (right * (-1, 1))[::-1]])


def silhouette(name: str, variant: float) -> list[np.ndarray]:
    """Return the outline of a class inside the unit disc: closed (V, 2) contours, filled by the even-odd rule.

    Args:
        name: one of `CLASSES`.
        variant: in [0, 1], the member of the class's family of shapes.
    """
    v, turn = variant, np.linspace(0, 2 * math.pi, 40, endpoint=False)
    if name == "ball":
        return [_polar(np.full(40, 0.9))]
    if name == "donut":
        return [_polar(np.full(40, 0.95)), _polar(np.full(40, 0.38 + 0.14 * v))]
    if name == "moon":
        outer = np.linspace(math.pi * 0.28, math.pi * 1.72, 30)
        back = np.linspace(math.pi * 1.62, math.pi * 0.38, 24)
        shift, inner = 0.36 + 0.1 * v, 0.72
        tips = np.stack([0.95 * np.cos(outer), 0.95 * np.sin(outer)], 1) + (0.15, 0)
        return [np.concatenate([tips, np.stack([shift + inner * np.cos(back), inner * np.sin(back)], 1) + (0.15, 0)])]
    if name == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - (4 + 2 * v) * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return [np.stack([x, y - 2], 1) / 17.0]
    if name == "star":
        return [_polar(np.tile([1.0, 0.38 + 0.1 * v], 5))]
    if name == "cross":
        w = 0.24 + 0.1 * v
        return [_mirror([(w, -0.95), (w, -w), (0.95, -w), (0.95, w), (w, w), (w, 0.95)])]
    if name == "tent":
        return [np.array([(0, -0.85), (0.95, 0.75), (0.3, 0.75), (0, 0.05 + 0.25 * v), (-0.3, 0.75), (-0.95, 0.75)])]
    if name == "tree":
        w = 0.12 + 0.06 * v
        return [_mirror([(0, -1), (0.5, -0.35), (0.28, -0.35), (0.75, 0.45), (w, 0.45), (w, 0.95)])]
    if name == "bottle":
        w = 0.4 + 0.12 * v
        return [_mirror([(0.17, -1), (0.17, -0.45), (w, -0.1), (w, 0.95)])]
    if name == "fish":
        body = np.linspace(math.pi * 0.86, -math.pi * 0.86, 24)
        oval = np.stack([0.28 + 0.66 * np.cos(body), (0.4 + 0.12 * v) * np.sin(body)], 1)
        return [np.concatenate([oval, [(-0.95, -0.55), (-0.72, 0.0), (-0.95, 0.55)]])]
    if name == "flower":
        petals = 5 if v < 0.5 else 6
        return [_polar(0.68 + 0.3 * np.cos(petals * (np.linspace(0, 2 * math.pi, 72, endpoint=False))))]
    if name == "arrow":
        w = 0.16 + 0.1 * v
        return [np.array([(0.98, 0), (0.25, -0.72), (0.25, -w), (-0.95, -w), (-0.95, w), (0.25, w), (0.25, 0.72)])]
    if name == "kite":
        y = -0.35 + 0.25 * v
        return [_mirror([(0, -1), (0.68, y), (0, 1)])]
    if name == "mushroom":
        cap = np.linspace(-math.pi, 0, 20)
        dome = np.stack([0.95 * np.cos(cap), 0.05 + 0.9 * np.sin(cap)], 1)
        w = 0.2 + 0.1 * v
        return [np.concatenate([dome, [(w, 0.05), (w, 0.9), (-w, 0.9), (-w, 0.05)]])]
    if name == "hourglass":
        w = 0.1 + 0.08 * v
        return [_mirror([(0.7, -0.92), (w, 0.0), (0.7, 0.92)])]
    if name == "crown":
        dip = -0.1 + 0.25 * v
        return [_mirror([(0, -0.75), (0.4, dip), (0.92, -0.75), (0.78, 0.7)])]
    raise UserError(f"class {name!r} is unknown to the embedded world; expected one of {', '.join(CLASSES)}")


def _background(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    dark, light = (np.array(c, np.float32) for c in BACKGROUNDS[name])
    coarse = rng.random((4, 4), dtype=np.float32)
    wash = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    tilt = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    mix = np.clip(0.65 * wash + 0.35 * tilt, 0, 1)[..., None]
    return dark * (1 - mix) + light * mix


def _paint(
    thing: SceneObject, outline: list[np.ndarray], rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the colours (size, size, 3), coverage (size, size) and edge coverage (size, size) of one object."""
    fine, scale = size * _OVERSAMPLE, size * _OVERSAMPLE / 2
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    stretch = np.array([math.sqrt(thing.aspect), 1 / math.sqrt(thing.aspect)])
    contours = []
    for contour in outline:
        placed = (contour * stretch * thing.radius) @ turn.T + (thing.x, thing.y)
        contours.append(np.round((placed + 1) * scale * 16).astype(np.int32))
    body = np.zeros((fine, fine), np.uint8)
    cv2.fillPoly(body, contours, 255, shift=4)
    line = np.zeros((fine, fine), np.uint8)
    width = max(1, round(1.3 * _OVERSAMPLE * size / SIZE))
    cv2.polylines(line, contours, True, 255, thickness=width, shift=4)
    cover = cv2.resize(np.maximum(body, line), (size, size), interpolation=cv2.INTER_AREA) / np.float32(255)
    edge = cv2.resize(line, (size, size), interpolation=cv2.INTER_AREA) / np.float32(255)

    main = np.array(COLOURS[thing.colour], np.float32)
    pixels = np.broadcast_to(main, (size, size, 3)).copy()
    phase = rng.random()
    if thing.pattern != "plain":
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        u = (axis[None] - thing.x) * cos + (axis[:, None] - thing.y) * sin
        w = -(axis[None] - thing.x) * sin + (axis[:, None] - thing.y) * cos
        if thing.pattern == "striped":
            marks = np.clip(0.5 + 2.0 * np.sin((w / 0.3 + phase) * 2 * math.pi), 0, 1)
        else:
            marks = np.clip(3.0 * (np.cos(u / 0.32 * 2 * math.pi) * np.cos(w / 0.32 * 2 * math.pi) - 0.25), 0, 1)
        second = main * 0.45 if main.mean() > 110 else main * 0.35 + 165
        pixels += marks[..., None] * (second - pixels)
    pixels *= (1.06 - 0.12 * np.linspace(0, 1, size, dtype=np.float32))[:, None, None]
    return pixels, cover, edge


def compose(scene: Scene, outlines: list[list[np.ndarray]], size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene whose objects have any outlines; their class names are not read.

    Args:
        outlines: per object its closed (V, 2) contours inside the unit disc, filled by the even-odd rule.

    Returns:
        The image uint8 (size, size, 3), and uint8 (size, size) with 0 background and i + 1 where object i is visible.
    """
    rng = seeded("grain", scene.grain)
    image = _background(scene.background, rng, size)
    owner = np.zeros((size, size), np.uint8)
    dark_ground = np.mean(BACKGROUNDS[scene.background]) < 100
    for i, (thing, outline) in enumerate(zip(scene.things, outlines, strict=True)):
        pixels, cover, edge = _paint(thing, outline, rng, size)
        ink = np.float32(225 if dark_ground else 30)
        pixels += edge[..., None] * (ink - pixels)
        image += cover[..., None] * (pixels - image)
        owner[cover > 0.5] = i + 1
    image += rng.normal(0, 2.0, image.shape).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), owner


def draw(scene: Scene, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return the image uint8 (size, size, 3) and the exact class mask uint8 (size, size) of a scene."""
    image, owner = compose(scene, [silhouette(t.name, t.variant) for t in scene.things], size)
    classes = np.array([0] + [CLASSES.index(t.name) + 1 for t in scene.things], np.uint8)
    return image, classes[owner]


def _pick(rng: np.random.Generator, choices) -> str:
    choices = tuple(choices)
    return choices[int(rng.integers(len(choices)))]


def _angle(rng: np.random.Generator, pose: str) -> float:
    degrees = rng.uniform(-12, 12) if pose == "upright" else rng.choice((-1, 1)) * rng.uniform(25, 50)
    return math.radians(float(degrees))


def _thing(rng: np.random.Generator, name: str, words: dict[str, str], radius: float, x: float, y: float) -> SceneObject:
    angle, aspect, variant = _angle(rng, words["pose"]), float(rng.uniform(0.85, 1.2)), float(rng.random())
    return SceneObject(name, words["colour"], words["pattern"], radius, x, y, angle, aspect, variant)


def scene_of_prompt(prompt: str, noise_seed: int, company: float = COMPANY) -> Scene:
    """Return the scene that a prompt asks for; whatever it leaves open is drawn from the seed, company too.

    Args:
        prompt: words of this world, e.g. "a small red star beside a plain blue moon on sand"; unknown words are ignored. The
            first class named is the subject, the first one behind "beside" its company.
        noise_seed: names every random choice.
        company: share of the seeds that put company beside a subject where the prompt asks for none.

    Raises:
        UserError: the prompt names no class of this world.
    """
    rng = seeded("prompt", noise_seed)
    words = prompt.lower().replace(",", " ").replace(".", " ").split()
    name, subject, beside = _class_in(words), words, []
    if "beside" in words and _class_in(words[: words.index("beside")]) is not None:
        place = words.index("beside")
        subject, beside = words[:place], words[place + 1 :]
    if name is None:
        raise UserError(f"prompt {prompt!r} names no class of the embedded world; expected one of {', '.join(CLASSES)}")
    chosen = _appearance(rng, subject)
    background = next((w for w in words if w in BACKGROUNDS), _pick(rng, BACKGROUNDS))
    neighbour = _class_in(beside) or (draw_company(rng, name) if rng.random() < company and not beside else None)
    things = _subjects(rng, name, chosen, next((COUNTS[w] for w in subject if w in COUNTS), 1), neighbour is not None)
    if neighbour is not None:
        side = -math.copysign(0.45, things[0].x)
        x, y = (side, float(rng.uniform(-0.4, 0.4))) if len(things) == 1 else (0.0, 0.52)
        look, radius = _appearance(rng, beside), float(rng.uniform(0.42, 0.6) if len(things) == 1 else rng.uniform(0.34, 0.44))
        other = _thing(rng, neighbour, look, radius, x + float(rng.uniform(-0.08, 0.08)), y)
        things = [other, *things] if rng.random() < 0.5 else [*things, other]
    return Scene(tuple(things), background, int(rng.integers(2**62)))


def draw_company(rng: np.random.Generator, name: str) -> str:
    """Return the class of an object beside one of class `name`: mostly its companion."""
    if rng.random() < FAITHFUL:
        return COMPANIONS[name]
    return _pick(rng, (other for other in CLASSES if other not in (name, COMPANIONS[name])))


def _class_in(words: list[str]) -> str | None:
    singular = {w: w for w in CLASSES} | {_plural(w): w for w in CLASSES}
    return next((singular[w] for w in words if w in singular), None)


def _appearance(rng: np.random.Generator, words: list[str]) -> dict[str, str]:
    """Return colour, pattern, size and pose by the words, the others drawn."""
    drawn = {
        "colour": _pick(rng, COLOURS),
        "pattern": _pick(rng, PATTERNS),
        "size": _pick(rng, SIZES),
        "pose": "tilted" if rng.random() < 0.25 else "upright",
    }
    lists = {"colour": COLOURS, "pattern": PATTERNS, "size": SIZES, "pose": POSES}
    return {key: next((w for w in words if w in lists[key]), drawn[key]) for key in drawn}


def _subjects(rng: np.random.Generator, name: str, chosen: dict[str, str], count: int, accompanied: bool) -> list[SceneObject]:
    """Return the one or two objects that a prompt is about; they leave room for company."""
    things = []
    for i in range(count):
        small = chosen["size"] == "small"
        if count == 1 and accompanied:
            radius, side = float(rng.uniform(0.34, 0.42) if small else rng.uniform(0.42, 0.52)), rng.choice((-1, 1))
            x, y = 0.42 * side + float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-0.35, 0.35))
        elif count == 1:
            radius = float(rng.uniform(0.42, 0.55) if small else rng.uniform(0.62, 0.8))
            slack = max(0.0, 0.95 - radius) * 0.7
            x, y = (float(s) for s in rng.uniform(-slack, slack, 2))
        else:
            radius = 0.72 * float(rng.uniform(0.42, 0.55) if small else rng.uniform(0.62, 0.8))
            x = (-0.45 if i == 0 else 0.45) + float(rng.uniform(-0.06, 0.06))
            y = float(rng.uniform(-0.3, 0.3)) - (0.3 if accompanied else 0.0)
        things.append(_thing(rng, name, chosen, radius, x, y))
    return things


def _plural(name: str) -> str:
    return name if name == "fish" else name + ("es" if name.endswith("s") else "s")


def prompt_of(
    name: str, *, colour: str, pattern: str, size: str, pose: str, background: str, count: str = "a", beside: str = ""
) -> str:
    """Return the sentence of the world, always in this order: "a big red striped tilted star beside a plain blue moon on sand".

    Args:
        beside: the company, e.g. "a plain blue moon", or nothing.
    """
    noun = name if COUNTS[count] == 1 else _plural(name)
    middle = [size, colour] + ([] if pattern == "plain" else [pattern]) + ([] if pose == "upright" else [pose])
    return " ".join([count, *middle, noun, *(["beside", beside] if beside else []), "on", background])


def vocabulary() -> list[str]:
    """Return every word of the sentences of this world, sorted."""
    words = {
        *CLASSES,
        *map(_plural, CLASSES),
        *COLOURS,
        *PATTERNS,
        *SIZES,
        *POSES,
        *BACKGROUNDS,
        *COUNTS,
        "beside",
        "on",
        "photo",
        "of",
    }
    return sorted(words)


def sample_scene(rng: np.random.Generator, names: tuple[str, ...] = CLASSES) -> Scene:
    """Draw a scene of the data set: one to three objects of any of the classes `names`, overlapping or cut by the frame."""
    count = int(rng.choice((1, 2, 3), p=(0.3, 0.45, 0.25)))
    things, centres = [], []
    for i in range(count):
        radius = float(rng.uniform(0.34, 0.8) if count == 1 else rng.uniform(0.3, 0.52))
        tries = rng.uniform(-0.75, 0.75, (8, 2)) * (1.0 if count > 1 else 0.5)
        distances = [min([math.dist(p, c) for c in centres], default=9.0) for p in tries]
        x, y = (float(s) for s in tries[int(np.argmax(distances))])
        centres.append((x, y))
        words = {"colour": _pick(rng, COLOURS), "pattern": _pick(rng, PATTERNS), "pose": _pick(rng, POSES)}
        name, is_companion = _pick(rng, names), i == 1 and rng.random() < HABIT and COMPANIONS[things[0].name] in names
        things.append(_thing(rng, COMPANIONS[things[0].name] if is_companion else name, words, radius, x, y))
    return Scene(tuple(things), _pick(rng, BACKGROUNDS), int(rng.integers(2**62)))
