"""Write a folder of new scenes with a captions.json; no two have the same caption.

    python draw.py scenes --count 100
"""
import argparse
import json
import os

import scenes
from train import distinct


def draw(out, split="test", count=100):
    """Returns the list in captions.json: the picture, the phrase that finds it, and what the decoder should say."""
    os.makedirs(out, exist_ok=True)
    entries = []
    for i, im, objects in distinct(split, count):
        file = f"scene_{i}.png"
        im.save(os.path.join(out, file), optimize=True)
        entries.append({"image": file, "caption": scenes.phrase(objects), "description": scenes.caption(objects)})
    write(out, entries)
    return entries


def write(out, entries):
    with open(os.path.join(out, "captions.json"), "w") as f:
        f.write("[\n" + ",\n".join("  " + json.dumps(e) for e in entries) + "\n]\n")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--count", type=int, default=100)
    ap.add_argument("--split", default="test", help="training draws from `train`, so every other word gives unseen scenes")
    a = ap.parse_args()
    draw(a.out, a.split, a.count)
