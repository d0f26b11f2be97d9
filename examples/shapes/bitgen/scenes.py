"""The demo's `spatial_scene` pictures with what they show: one to three coloured shapes, no two of one kind or colour.

    image, objects = scene("train", 5)      objects: [(kind, colour)], in the order of shapes.SHAPES
    phrase(objects)                         "red circle and blue star"
    caption(objects)                        "two shapes: red circle, blue star"
"""
import os
import random
import sys

import torch
from PIL import Image, ImageDraw

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # behind this folder: names recur
import shapes  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
FAMILY = shapes.FAMILIES.index("spatial_scene")
CROP = 64
OBJECTS = [(k, c) for k in shapes.SHAPES for c in shapes.COLORS]
PAIRS = [(i, j) for i, (k, c) in enumerate(OBJECTS) for j, (k2, c2) in enumerate(OBJECTS) if i < j and k != k2 and c != c2]
NUMBERS = {1: "one shape:", 2: "two shapes:", 3: "three shapes:"}
PROMPTS = ["<s>", "describe the image", "what is in the image?", "describe the picture", "what is in the picture?", "caption"]


def name(o):
    return f"{o[1]} {o[0]}"


def phrase(objects):
    return " and ".join(name(o) for o in objects)


def caption(objects):
    return f"{NUMBERS[len(objects)]} {', '.join(name(o) for o in objects)}"


def scene(split, index, most=3):
    """The picture with this number, or with the next number of `split` that shows at most `most` shapes."""
    step = 0
    while True:
        im, _ = shapes.make_scene(split, FAMILY, f"{index}-{step}" if step else index)
        objects = sorted(((k, c) for k, _, _, c in shapes.MARKS), key=OBJECTS.index)
        if len(objects) <= most:
            return im, objects
        step += 1


def crop(rng, blank):
    """A small picture (64x64) with one shape, drawn as `spatial_scene` draws it, or with none."""
    im = Image.new("RGB", (CROP, CROP), shapes.background(rng))
    if blank:
        return im, -1
    o = rng.randrange(len(OBJECTS))
    kind, color = OBJECTS[o]
    r = rng.randint(14, 19)
    x, y = (rng.randint(r + 2, CROP - r - 3) for _ in range(2))
    shapes.draw_shape(ImageDraw.Draw(im), kind, x, y, r, shapes.jitter(rng, shapes.COLORS[color]), color)
    return im, o


def pixels(images):
    """Pictures of one size as [n, 3, height, width] in 0..1."""
    w, h = images[0].size
    data = torch.frombuffer(bytearray(b"".join(im.tobytes() for im in images)), dtype=torch.uint8)
    return data.view(-1, h, w, 3).permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    for n in range(8):
        _, objects = scene("train", n)
        print(phrase(objects), "|", caption(objects))
    print(len(OBJECTS), "objects,", len(PAIRS), "pairs,", random.Random(0).choice(PAIRS))
