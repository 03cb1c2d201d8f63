"""The miniature's world: small pictures of places and objects, and what people might say of them.

Drawn by this file alone, so nobody's photographs are involved. A scene is a place (a noisy texture)
with one or two coloured objects; five captions are written for each from templates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # pixels along one side of a picture
ZOOM = 4  # objects are drawn this many times larger and reduced, which smooths their edges

PLACES = ("field", "beach", "snow", "street", "water", "table", "wall", "night")
KINDS = ("ball", "car", "boat", "house", "tree", "kite", "umbrella", "bird", "fish", "flower")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (240, 134, 30),
    "yellow": (246, 214, 48),
    "green": (40, 150, 60),
    "blue": (44, 84, 204),
    "purple": (132, 52, 168),
    "pink": (244, 138, 186),
    "brown": (122, 76, 38),
    "black": (28, 28, 32),
    "white": (246, 246, 246),
}
COLOUR_NAMES = tuple(COLOURS)
RELATIONS = ("above", "below", "left", "right")

_PLACE_WORDS = {
    "field": ("in a field", "on the grass", "in a grass field"),
    "beach": ("on the beach", "on the sand", "on a sand beach"),
    "snow": ("in the snow", "on the snow", "in deep snow"),
    "street": ("on the street", "on the road", "on a grey street"),
    "water": ("in the water", "on the sea", "on the water"),
    "table": ("on a table", "on the wood table", "on a wood table"),
    "wall": ("by a brick wall", "at the wall", "by the wall"),
    "night": ("at night", "in the night", "in the dark night"),
}
_RELATION_WORDS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
}
# base colour, second colour, and the way the texture runs
_PLACE_PAINT = {
    "field": ((92, 158, 72), (52, 104, 44), "fine"),
    "beach": ((226, 202, 148), (196, 164, 108), "fine"),
    "snow": ((236, 240, 246), (206, 216, 230), "soft"),
    "street": ((128, 128, 130), (98, 98, 102), "fine"),
    "water": ((66, 136, 178), (110, 178, 208), "waves"),
    "table": ((172, 122, 76), (136, 92, 52), "grain"),
    "wall": ((174, 92, 72), (138, 66, 52), "bricks"),
    "night": ((24, 26, 58), (10, 10, 28), "stars"),
}


@dataclass(frozen=True)
class Item:
    """One object: indices into KINDS and COLOUR_NAMES, centre (x right, y down) and size in pixels."""

    kind: int
    colour: int
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """A place (index into PLACES), its one or two objects, and how the first stands to the second."""

    place: int
    items: tuple[Item, ...]
    relation: str | None = None


def draw_scene(rng: np.random.Generator, one_object: float = 0.65) -> Scene:
    """A scene at random; with probability ``one_object`` it has one object, else two."""
    place = int(rng.integers(len(PLACES)))
    kinds = rng.choice(len(KINDS), 2, replace=False)
    colours = rng.choice(len(COLOURS), 2, replace=False)
    if rng.random() < one_object:
        size = rng.uniform(26, 40)
        x, y = rng.uniform(size / 2 + 1, SIZE - size / 2 - 1, 2)
        return Scene(place, (Item(int(kinds[0]), int(colours[0]), x, y, size),))
    relation = str(rng.choice(RELATIONS))
    sizes = rng.uniform(21, 28, 2)
    first = rng.uniform(sizes[0] / 2 + 1, SIZE / 2 - sizes[0] / 2 + 4)
    second = rng.uniform(SIZE / 2 + sizes[1] / 2 - 4, SIZE - sizes[1] / 2 - 1)
    across = rng.uniform(sizes / 2 + 1, SIZE - sizes / 2 - 1)
    if relation in ("right", "below"):
        first, second = SIZE - first, SIZE - second
    if relation in ("left", "right"):
        centres = ((first, across[0]), (second, across[1]))
    else:
        centres = ((across[0], first), (across[1], second))
    items = tuple(
        Item(int(kinds[i]), int(colours[i]), float(centres[i][0]), float(centres[i][1]), sizes[i])
        for i in range(2)
    )
    return Scene(place, items, relation)


class Textures:
    """A bank of noise fields, one set for each place; pictures cut random windows out of it.

    Banks of different seeds share nothing, so test pictures can have textures that no training
    picture had. 32 fields of 128 x 128 for each of 8 places: 17 MB of float32.
    """

    def __init__(self, seed: int, n_fields: int = 32, side: int = 128):
        rng = np.random.default_rng([seed, 71])
        self.side = side
        self.fields = np.stack(
            [
                [_noise(rng, style, side) for _ in range(n_fields)]
                for *_, style in _PLACE_PAINT.values()
            ]
        ).astype(np.float32)  # (places, fields, side, side) in 0..1

    def cut(self, place: int, rng: np.random.Generator) -> np.ndarray:
        """A (64, 64, 3) float32 background in 0..255."""
        y, x = rng.integers(0, self.side - SIZE, 2)
        field = self.fields[place, rng.integers(self.fields.shape[1]), y : y + SIZE, x : x + SIZE]
        base, second, _ = _PLACE_PAINT[PLACES[place]]
        light = rng.uniform(0.92, 1.08)
        mixed = np.asarray(base) + field[..., None] * (np.asarray(second) - np.asarray(base))
        return (mixed * light).astype(np.float32)


def _noise(rng: np.random.Generator, style: str, side: int) -> np.ndarray:
    """One noise field (side, side) in 0..1."""
    fy, fx = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    stretch = {"waves": (2.5, 0.6), "grain": (4.0, 0.4)}.get(style, (1.0, 1.0))
    radius = np.hypot(fy / stretch[0], fx / stretch[1])
    power = {"soft": 1.6, "waves": 1.4, "grain": 1.2}.get(style, 0.7)
    spectrum = rng.standard_normal(radius.shape) + 1j * rng.standard_normal(radius.shape)
    spectrum /= np.maximum(radius, 1 / side) ** power
    field = np.fft.irfft2(spectrum, (side, side))
    field = np.clip(0.5 + 0.22 * (field - field.mean()) / field.std(), 0, 1)
    if style == "bricks":
        shift = rng.integers(0, 16, 2)
        yy, xx = np.mgrid[0:side, 0:side]
        row = (yy + shift[0]) // 8
        mortar = ((yy + shift[0]) % 8 == 0) | ((xx + shift[1] + 8 * (row % 2)) % 16 == 0)
        field = np.where(mortar, -0.9, 0.6 * field)
    if style == "stars":
        stars = rng.random((side, side)) < 0.006
        field = np.where(stars, -9.0 * rng.random((side, side)), field)
    return field


def render(
    scene: Scene, textures: Textures, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: picture (64, 64, 3) uint8 and owner (64, 64) int8 (0 background, 1 + item)."""
    background = np.clip(textures.cut(scene.place, rng), 0, 255).astype(np.uint8)
    picture = Image.fromarray(background).resize(
        (SIZE * ZOOM, SIZE * ZOOM), Image.Resampling.BICUBIC
    )
    owner = Image.new("L", picture.size, 0)
    outline = (225, 225, 235) if PLACES[scene.place] == "night" else (24, 24, 28)
    for number, item in enumerate(scene.items):
        paint, mask = ImageDraw.Draw(picture), ImageDraw.Draw(owner)
        jitter = rng.uniform(-12, 12, 3)
        body = np.clip(np.asarray(COLOURS[COLOUR_NAMES[item.colour]]) + jitter, 0, 255)
        fill = tuple(int(v) for v in body)
        for shape, points in _outline(KINDS[item.kind]):
            at = [
                ((item.x + px * item.size / 2) * ZOOM, (item.y + py * item.size / 2) * ZOOM)
                for px, py in points
            ]
            _stroke(paint, shape, at, fill, outline)
            _stroke(mask, shape, at, number + 1, number + 1)
    small = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    owners = owner.resize((SIZE, SIZE), Image.Resampling.NEAREST)
    return np.asarray(small), np.asarray(owners).astype(np.int8)


def _stroke(draw: ImageDraw.ImageDraw, shape: str, points: list, fill, outline) -> None:
    """One part of an object, in pixels of the enlarged drawing."""
    wide = 5
    if shape == "polygon":
        draw.polygon(points, fill=fill)
        draw.line([*points, points[0], points[1]], fill=outline, width=wide, joint="curve")
    elif shape == "ellipse":
        draw.ellipse([*points[0], *points[1]], fill=fill, outline=outline, width=wide)
    elif shape == "line":
        draw.line(points, fill=outline, width=wide + 3)
    elif shape == "dark":  # a part in the outline's colour, such as wheels and windows
        draw.ellipse([*points[0], *points[1]], fill=outline)
    elif shape == "window":
        draw.rectangle([*points[0], *points[1]], fill=outline)


def _outline(kind: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Parts of an object in a box from -1 to 1 (x right, y down), painted in order."""
    if kind == "ball":
        return [("ellipse", [(-0.9, -0.9), (0.9, 0.9)]), ("line", [(-0.85, 0), (0.85, 0)])]
    if kind == "car":
        body = [(-1, 0.4), (-1, -0.05), (-0.6, -0.1), (-0.35, -0.6), (0.4, -0.6), (0.65, -0.1)]
        return [
            ("polygon", [*body, (1, 0), (1, 0.4)]),
            ("window", [(-0.25, -0.42), (0.3, -0.12)]),
            ("dark", [(-0.8, 0.15), (-0.25, 0.7)]),
            ("dark", [(0.25, 0.15), (0.8, 0.7)]),
        ]
    if kind == "boat":
        return [
            ("line", [(0, 0.3), (0, -1)]),
            ("polygon", [(0.08, -0.95), (0.85, 0.15), (0.08, 0.15)]),
            ("polygon", [(-1, 0.3), (1, 0.3), (0.6, 0.85), (-0.6, 0.85)]),
        ]
    if kind == "house":
        return [
            ("polygon", [(-0.75, -0.1), (0.75, -0.1), (0.75, 0.9), (-0.75, 0.9)]),
            ("polygon", [(-1, -0.1), (0, -0.95), (1, -0.1)]),
            ("window", [(-0.18, 0.35), (0.18, 0.9)]),
        ]
    if kind == "tree":
        return [
            ("window", [(-0.14, 0.3), (0.14, 1)]),
            ("polygon", [(-0.85, 0.45), (0, -1), (0.85, 0.45)]),
        ]
    if kind == "kite":
        return [
            ("line", [(0, 0.5), (0.3, 0.7), (0, 0.85), (0.3, 1)]),
            ("polygon", [(0, -1), (0.62, -0.3), (0, 0.6), (-0.62, -0.3)]),
            ("line", [(0, -0.95), (0, 0.55)]),
            ("line", [(-0.6, -0.3), (0.6, -0.3)]),
        ]
    if kind == "umbrella":
        angles = np.linspace(np.pi, 2 * np.pi, 13)
        dome = [(float(np.cos(a)), float(0.95 * np.sin(a))) for a in angles]
        return [
            ("line", [(0, 0), (0, 0.9), (0.3, 0.9), (0.3, 0.7)]),
            ("polygon", [*dome, (0.5, -0.2), (0, 0), (-0.5, -0.2)]),
        ]
    if kind == "bird":
        return [
            ("polygon", [(-0.95, -0.35), (-0.35, 0.1), (-0.45, 0.35)]),
            ("ellipse", [(-0.55, -0.2), (0.5, 0.6)]),
            ("ellipse", [(0.15, -0.65), (0.75, 0.0)]),
            ("line", [(0.72, -0.35), (1, -0.25)]),
            ("line", [(-0.1, 0.6), (-0.1, 0.95)]),
            ("line", [(0.2, 0.6), (0.2, 0.95)]),
        ]
    if kind == "fish":
        return [
            ("polygon", [(0.45, 0), (1, -0.5), (1, 0.5)]),
            ("ellipse", [(-1, -0.5), (0.6, 0.5)]),
            ("dark", [(-0.72, -0.22), (-0.5, 0.0)]),
        ]
    petals = [(0.55 * np.sin(a), -0.3 - 0.5 * np.cos(a)) for a in np.arange(5) * 2 * np.pi / 5]
    return [
        ("line", [(0, 0), (0, 1)]),
        ("line", [(0, 0.75), (0.4, 0.45)]),
        *[("ellipse", [(x - 0.3, y - 0.3), (x + 0.3, y + 0.3)]) for x, y in petals],
        ("dark", [(-0.2, -0.5), (0.2, -0.1)]),
    ]


def write_captions(scene: Scene, rng: np.random.Generator, n: int = 5) -> list[str]:
    """``n`` captions of at most 14 words, from templates with synonyms."""
    return [_caption(scene, rng) for _ in range(n)]


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    place = rng.choice(_PLACE_WORDS[PLACES[scene.place]])
    names = [f"{COLOUR_NAMES[item.colour]} {KINDS[item.kind]}" for item in scene.items]
    named = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
    if len(names) == 1:
        start = rng.choice(("", "", "there is ", "one sees "))
        return f"{start}{named[0]} {place}"
    if rng.random() < 0.6 and scene.relation:
        relation = rng.choice(_RELATION_WORDS[scene.relation])
        return f"{named[0]} {relation} {named[1]} {place}"
    order = rng.permutation(2)
    return f"{named[order[0]]} and {named[order[1]]} {place}"


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted, with the words of the captioner's prompt."""
    words = {"a", "an", "and", "there", "is", "one", "sees", "picture", "of", *KINDS, *COLOUR_NAMES}
    for phrases in (*_PLACE_WORDS.values(), *_RELATION_WORDS.values()):
        words.update(word for phrase in phrases for word in phrase.split())
    return sorted(words)


@dataclass(frozen=True)
class Reading:
    """What a caption says: a place or none, and pairs of (kind, colour or none), as indices."""

    place: int | None
    items: tuple[tuple[int, int | None], ...]


def read_caption(text: str) -> Reading:
    """Find places, objects and their colours in a caption, whoever wrote it."""
    words = text.split()
    padded = f" {' '.join(words)} "
    places = [
        number
        for number, place in enumerate(PLACES)
        if any(f" {phrase} " in padded for phrase in _PLACE_WORDS[place])
    ]
    items = []
    for before, word in zip(["", *words], words, strict=False):
        if word in KINDS:
            colour = COLOUR_NAMES.index(before) if before in COLOUR_NAMES else None
            items.append((KINDS.index(word), colour))
    return Reading(places[0] if places else None, tuple(items))


def compare(scenes: list[Scene], readings: list[Reading]) -> dict[str, float]:
    """Shares: scenes whose ``place`` is said, objects said (``kind``), and of those the ``colour``
    said; ``both`` is the share of objects said with their colour."""
    places, kinds, both = [], [], []
    for scene, reading in zip(scenes, readings, strict=True):
        places.append(scene.place == reading.place)
        for item in scene.items:
            kinds.append(any(kind == item.kind for kind, _ in reading.items))
            both.append((item.kind, item.colour) in reading.items)
    said = max(sum(kinds), 1)
    return {
        "place": float(np.mean(places)),
        "kind": float(np.mean(kinds)),
        "colour": sum(both) / said,
        "both": float(np.mean(both)),
    }
