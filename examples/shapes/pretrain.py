"""Stage 1: train the visual side alone (encoder, compressor, pooler, projector), without the decoder.

Two light heads, thrown away afterwards, tell it what to see: one names what is drawn in each of the
64 patches and its colour, the other answers the scene's questions token by token from the 16 image
tokens.  A run that was stopped goes on from its last checkpoint.

    python pretrain.py --steps 5000 --out run
"""
import argparse
import itertools
import os
import random
import time
import zlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import model as M
import shapes
from data import Prompts, augment, pixels, to_pixels
from optimiser import Optimiser, join, launch, trapezoid

QUESTIONS = 2048
THINGS = {t: i for i, t in enumerate(["", "bar", *shapes.SHAPES, *shapes.GLYPHS])}
COLORS = {c: i for i, c in enumerate(["", *shapes.COLORS])}


class Patches(nn.Module):
    """What is drawn in each patch, and in which colour: two classifiers on the encoder's tokens."""

    def __init__(self, c):
        super().__init__()
        self.mid = M.Linear(c.vision_hidden_size, 192)
        self.thing, self.color = M.Linear(192, len(THINGS)), M.Linear(192, len(COLORS))

    def forward(self, tokens, labels):
        h = F.gelu(self.mid(tokens.flatten(0, 1)))
        thing, color = labels.flatten(0, 1).unbind(-1)
        weight = (thing > 0) * 0.9 + 0.1
        a = F.cross_entropy(self.thing(h), thing, reduction="none")
        b = F.cross_entropy(self.color(h), color, reduction="none")
        return ((a + 0.5 * b) * weight).sum() / weight.sum()


class Answers(nn.Module):
    """The k-th answer token from all image tokens and the question."""

    def __init__(self, c, width=384):
        super().__init__()
        self.image = M.Linear(c.num_image_tokens * c.hidden_size, width)
        self.ask, self.mid, self.out = nn.Embedding(QUESTIONS, width), M.Linear(width, width), M.Linear(width, c.vocab_size)

    def forward(self, e, image_of, ask):
        q = self.ask(ask)
        h = F.gelu(self.image(e.flatten(1))[image_of] * (1 + q) + q)
        return self.out(F.gelu(self.mid(h)) + h)


def slot(question, k):
    """A stable number for (question, answer position), the same in every worker."""
    return zlib.crc32(f"{question}/{k}".encode()) % QUESTIONS


def patch_labels(dx, dy):
    """[64, 2] thing and colour drawn in each patch of the last scene, moved by (dx, dy)."""
    out = torch.zeros(64, 2, dtype=torch.long)
    for thing, x, y, color in shapes.MARKS:
        cell = int((y + dy) % shapes.SIZE) // 16 * 8 + int((x + dx) % shapes.SIZE) // 16
        out[cell, 0], out[cell, 1] = THINGS[thing], COLORS[color]
    return out


def batch(prompts, rng, count, counter, easy):
    images, marks, of, ask, label, family = [], [], [], [], [], []
    for b in range(count):
        f = rng.randrange(8)
        im, qas = shapes.make_scene("train", f, next(counter), rng.random() < easy)
        dx, dy = rng.randint(-3, 3), rng.randint(-3, 3)
        images.append(augment(pixels(im), dx, dy))
        marks.append(patch_labels(dx, dy))
        for q, answer in shapes.pick(qas, rng, len(qas), 1.0):
            for k, token in enumerate(prompts.answer(answer)):
                of.append(b), ask.append(slot(q, k)), label.append(token), family.append(f)
    return to_pixels(images), torch.stack(marks), *map(torch.tensor, (of, ask, label, family))


def note(run, logits, label, family, losses):
    """Running means of the losses and of the token accuracy per family (without the end token)."""
    good = logits.argmax(-1) == label
    now = {k: v.item() for k, v in losses.items()}
    for f in range(8):
        k = (family == f) & (label != 2)
        if k.any():
            now[str(f)] = good[k].float().mean().item()
    for k, v in now.items():
        run[k] = run.get(k, v) * 0.98 + v * 0.02


def setup(rank, a):
    join(rank, a)
    c = M.Config()
    m = M.EmberNet(c)
    M.local_init(m, to_pixels([pixels(shapes.make_scene("train", i % 8, i)[0]) for i in range(96)]))
    heads = nn.ModuleDict({"patch_head": Patches(c), "answer_head": Answers(c)})
    M.S.gemm, M.S.lam = torch.bfloat16, torch.tensor(0.0)
    named = [*m.vision.named_parameters(), *heads.named_parameters()]
    return m, heads, Optimiser(named, a.lr, 0.02, a.workers, rank, a.muon)


def worker(rank, a):
    m, heads, opt = setup(rank, a)
    prompts, rng = Prompts(), random.Random(f"pretrain-{a.seed}-{rank}")
    step, run, saved = 0, {}, os.path.join(a.out, "pretrain.pt")
    if os.path.exists(saved):
        s = torch.load(saved)
        m.load_state_dict(s["model"], strict=False), heads.load_state_dict(s["heads"]), opt.load(s["optimiser"])
        step = s["step"]
        rng.seed(f"pretrain-{a.seed}-{rank}-{step}")
    counter = itertools.count(step * a.images * a.workers + rank, a.workers)
    begin, first = time.time(), step
    vision = torch.compile(m.vision.__class__.forward) if a.compile else m.vision.__class__.forward
    while step < a.steps:
        px, marks, of, ask, label, family = batch(prompts, rng, a.images, counter, 0.6 * (1 - 3 * step / a.steps))
        e, tokens = vision(m.vision, px, True)
        logits = heads["answer_head"](e * 10, of, ask)
        losses = {"answer": F.cross_entropy(logits, label), "patch": heads["patch_head"](tokens, marks)}
        opt.zero_grad()
        (losses["answer"] + a.patch * losses["patch"]).backward()
        opt.average()
        opt.step(trapezoid(step, a.steps, 100, 0.4))
        step += 1
        if rank == 0:
            with torch.no_grad():
                note(run, logits, label, family, losses)
            if step % 200 == 0:
                rate = (step - first) * a.images * a.workers / (time.time() - begin)
                print(step, f"min {(time.time() - begin) / 60:.2f} img/s {rate:.0f}", " ".join(f"{k}:{v:.3f}" for k, v in sorted(run.items())), flush=True)
            if step % 1000 == 0 or step == a.steps:
                torch.save({"model": m.state_dict(), "heads": heads.state_dict(), "optimiser": opt.state(), "step": step}, saved + ".tmp")
                os.replace(saved + ".tmp", saved)
    if rank == 0:
        save_file(M.to_checkpoint(m), os.path.join(a.out, "vision.safetensors"))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--steps", type=int, default=5000)
    ap.add_argument("--workers", type=int, default=2)
    ap.add_argument("--images", type=int, default=32, help="pictures per worker and step")
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--muon", type=int, default=1)
    ap.add_argument("--patch", type=float, default=1.0, help="weight of the patch labels")
    ap.add_argument("--compile", type=int, default=1)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--out", default="run")
    launch(worker, ap.parse_args())
