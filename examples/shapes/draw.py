"""Write a folder of new scenes with a questions.json, as `ternion eval --data` reads it.

    python draw.py scenes --per-family 500
"""
import argparse
import json
import os
import random

import shapes


def draw(out, split, start, per_family, questions=1):
    """Draws the scenes start..start+per_family of every family; returns the list in questions.json."""
    os.makedirs(out, exist_ok=True)
    entries = []
    for f, family in enumerate(shapes.FAMILIES):
        rng = random.Random(f"{split}-ask-{f}-{start}")
        for i in range(start, start + per_family):
            im, qas = shapes.make_scene(split, f, i)
            name = f"{family}_{i}.png"
            im.save(os.path.join(out, name), optimize=True)
            for question, answer in shapes.pick(qas, rng, questions):
                entries.append({"image": name, "family": family, "question": question, "answer": answer})
    write(out, entries)
    return entries


def write(out, entries):
    with open(os.path.join(out, "questions.json"), "w") as f:
        f.write("[\n" + ",\n".join("  " + json.dumps(e) for e in entries) + "\n]\n")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--per-family", type=int, default=500)
    ap.add_argument("--start", type=int, default=0, help="number of the first scene")
    ap.add_argument("--split", default="test", help="training draws from `train`, so every other word gives unseen scenes")
    ap.add_argument("--questions", type=int, default=1, help="questions on each scene")
    a = ap.parse_args()
    draw(a.out, a.split, a.start, a.per_family, a.questions)
