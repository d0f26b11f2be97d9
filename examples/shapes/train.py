"""Stage 2: train the whole model on questions and answers, from the visual side of stage 1.

First in full precision, then with ternary weights and 8-bit activations (straight-through gradients).
Every step draws new scenes; weak families are drawn more often.  A run that was stopped goes on from its
last checkpoint.

    python train.py --init run/vision.safetensors --steps 9000 --out run
"""
import argparse
import itertools
import json
import os
import random
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import model as M
import shapes
from data import Prompts, augment, pixels, to_pixels
from optimiser import Optimiser, join, launch, trapezoid

PLAIN = (M.expert, M.Layer.attention, M.Vision.forward)


def compiled(on):
    """Switch between compiled functions (training) and the plain ones."""
    M.EXPERT[0], M.Layer.attention, M.Vision.forward = (
        (torch.compile(PLAIN[0], dynamic=True), torch.compile(PLAIN[1], dynamic=True), torch.compile(PLAIN[2]))
        if on else PLAIN)


def row(prompts, qas, n_img):
    """One picture's questions behind one prefix: ids, positions, segments (0: shared), labels (-1: none)."""
    p = len(prompts.prefix)
    ids, pos, seg, lab = list(prompts.prefix), list(range(n_img, n_img + p)), [0] * p, [-1] * p
    for s, (q, a) in enumerate(qas, 1):
        qi, ai = prompts.question(q), prompts.answer(a)
        n = len(qi) + len(ai) - 1
        ids += qi + ai[:-1]
        lab += [-1] * (len(qi) - 1) + ai
        pos += range(n_img + p, n_img + p + n)
        seg += [s] * n
    return ids, pos, seg, lab


def batch(prompts, rng, a, counter, n_img, weights, easy):
    """Several questions share one picture and one prefix; a mask keeps them apart."""
    images, rows, family = [], [], []
    for _ in range(a.images):
        f = rng.choices(range(8), weights)[0]
        im, qas = shapes.make_scene("train", f, next(counter), rng.random() < easy)
        images.append(augment(pixels(im), rng.randint(-3, 3), rng.randint(-3, 3)))
        rows.append(row(prompts, shapes.pick(qas, rng, a.per_image, 0.5), n_img))
        family.append(f)
    longest = (max(len(r[0]) for r in rows) + 7) // 8 * 8

    def padded(k, fill):
        return torch.tensor([list(r[k]) + [fill] * (longest - len(r[k])) for r in rows])
    zero = torch.zeros(a.images, n_img, dtype=torch.long)
    ids, pos = padded(0, 0), torch.cat([torch.arange(n_img).expand(a.images, -1), padded(1, 0)], 1)
    seg, lab = torch.cat([zero, padded(2, -2)], 1), torch.cat([zero - 1, padded(3, -1)], 1)
    same = (seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None])
    mask = (same & torch.ones(seg.shape[1], seg.shape[1], dtype=torch.bool).tril())[:, None]
    return to_pixels(images), ids, pos, mask, seg, lab, torch.tensor(family)


def losses(m, c, data):
    """Language loss of the answers, balance and supervision of the routers, and for each question
    (family, 1 if every token of its answer is the likeliest: then greedy decoding gives exactly it)."""
    px, ids, pos, mask, seg, lab, family = data
    x = torch.cat([m.vision(px).clamp(-10, 10), m.embed(ids)], 1)
    valid = (seg.flatten() > -1).nonzero()[:, 0]
    want = (lab.flatten() > -1).nonzero()[:, 0]
    logits, info = m.decode(x, pos, mask, valid, want)
    target = lab.flatten()[want]
    lm = F.cross_entropy(logits, target)
    domain = family[:, None].expand(-1, seg.shape[1]).flatten()
    balance = supervision = 0.0
    for router, chosen, sel in info:
        p = router.softmax(-1)
        load = F.one_hot(chosen, c.num_experts).float().sum((0, 1)) / chosen.numel()
        balance = balance + c.num_experts * (load * p.mean(0)).sum() / len(info)
        supervision = supervision + F.cross_entropy(router, domain[sel]) / len(info)
    with torch.no_grad():
        wrong = torch.zeros(len(seg), 9).index_put_(
            (want // seg.shape[1], seg.flatten()[want]), (logits.argmax(-1) != target).float(), accumulate=True)
        asked = torch.zeros(len(seg), 9, dtype=torch.bool).index_put_(
            (want // seg.shape[1], seg.flatten()[want]), torch.tensor(True))
        exact = [((wrong == 0) & asked)[family == f].sum() for f in range(8)], [asked[family == f].sum() for f in range(8)]
    return lm, balance, supervision, torch.tensor(exact, dtype=torch.float)


class Run:
    """A worker's model, optimiser, and what a checkpoint holds."""

    def __init__(self, rank, a):
        join(rank, a)
        self.rank, self.a, self.c = rank, a, M.Config()
        self.m = M.EmberNet(self.c)
        M.local_init(self.m, to_pixels([pixels(shapes.make_scene("train", i % 8, i)[0]) for i in range(96)]))
        M.from_checkpoint(self.m, load_file(a.init), strict=False)  # has no decoder: that stays as it is
        self.opt = Optimiser(self.m.named_parameters(), a.lr, a.decay, a.workers, rank)
        self.step, self.exact = 0, torch.tensor([0.2] * 8)
        self.file = os.path.join(a.out, "train.pt")
        if os.path.exists(self.file):
            s = torch.load(self.file)
            self.m.load_state_dict(s["model"], strict=False), self.opt.load(s["optimiser"])
            self.step, self.exact = s["step"], s["exact"]

    def save(self):
        state = {"model": self.m.state_dict(), "optimiser": self.opt.state(), "step": self.step, "exact": self.exact}
        torch.save(state, self.file + ".tmp")
        os.replace(self.file + ".tmp", self.file)
        save_file(M.to_checkpoint(self.m), os.path.join(self.a.out, "last.safetensors"))
        with open(os.path.join(self.a.out, "last.json"), "w") as f:
            json.dump({"step": self.step, **{k: v for k, v in vars(self.a).items() if k not in ("out", "init")}}, f)

    def one(self, prompts, rng, counter):
        a, t = self.a, self.step / self.a.steps
        M.S.lam = torch.tensor(min(1.0, max(0.0, (t - a.full) / a.ramp)))
        weights = (1.05 - self.exact).clamp(0.15, 0.6).tolist()
        data = batch(prompts, rng, a, counter, self.c.num_image_tokens, weights, 0.5 * (1 - t / 0.1))
        lm, balance, supervision, exact = losses(self.m, self.c, data)
        self.opt.zero_grad()
        (lm + self.c.router_aux_loss_coef * balance + self.c.expert_supervision_coef * supervision).backward()
        self.opt.average()
        self.opt.step(trapezoid(self.step, a.steps, 200, a.tail))
        if a.workers > 1:
            dist.all_reduce(exact)
        seen = exact[1] > 0
        rate = 1 - 0.999 ** exact[1]
        self.exact[seen] += (rate * (exact[0] / exact[1].clamp_min(1) - self.exact))[seen]
        self.step += 1
        return lm.item(), balance.item(), supervision.item()


def worker(rank, a):
    run, prompts = Run(rank, a), Prompts()
    rng = random.Random(f"train-{a.seed}-{rank}-{run.step}")
    counter = itertools.count(10 ** 9 + run.step * a.images * a.workers + rank, a.workers)
    M.S.gemm = torch.bfloat16
    compiled(a.compile)
    begin, first, mean = time.time(), run.step, None
    while run.step < a.steps:
        now = torch.tensor(run.one(prompts, rng, counter))
        mean = now if mean is None else mean.lerp(now, 0.02)
        if rank == 0 and run.step % 100 == 0:
            spent = time.time() - begin
            print(f"{run.step} min {spent / 60:.1f} img/s {(run.step - first) * a.images * a.workers / spent:.0f} lam {M.S.lam:.2f} "
                  + "loss {:.3f} balance {:.2f} supervision {:.3f} exact ".format(*mean.tolist())
                  + " ".join(f"{x:.2f}" for x in run.exact.tolist()) + f" mean {run.exact.mean():.3f}", flush=True)
        if rank == 0 and (run.step % 500 == 0 or run.step == a.steps):
            run.save()


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--init", required=True, help="vision.safetensors of stage 1")
    ap.add_argument("--steps", type=int, default=9000)
    ap.add_argument("--workers", type=int, default=2)
    ap.add_argument("--images", type=int, default=24, help="pictures per worker and step")
    ap.add_argument("--per-image", type=int, default=4, help="questions on each picture")
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--decay", type=float, default=0.02)
    ap.add_argument("--full", type=float, default=0.2, help="share of the steps in full precision")
    ap.add_argument("--ramp", type=float, default=0.1, help="share of the steps in which quantisation comes in")
    ap.add_argument("--tail", type=float, default=0.4, help="share of the steps in which the learning rate falls")
    ap.add_argument("--compile", type=int, default=1)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--out", default="run")
    launch(worker, ap.parse_args())
