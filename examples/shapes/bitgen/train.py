"""Train the small BitGen from nothing, on the CPU.  A run that is stopped goes on from its last checkpoint.

    python train.py --out run

The first convolution is written, not trained: edges in eight directions and spots, in three mixtures of the colours.
What it makes of every picture is computed once and kept.

1. crops: the other convolutions and the contrastive features, on small pictures with one shape.  The image feature
   depends on the mean of the patches alone, so the means of two crops, added up, stand for a picture with two shapes.
2. scenes: the same on whole pictures.
3. words: everything behind the vision encoder, on features of pictures computed once: captions join in.
"""
import argparse
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import model as M
import scenes
from make_tokenizer import FIRST, NAMES, SPECIAL, WORDS
from scenes import OBJECTS, PAIRS, shapes

N = len(OBJECTS)
PAIR = torch.tensor(PAIRS).T
CLASS = {frozenset((i,)): i for i in range(N)} | {frozenset(p): N + k for k, p in enumerate(PAIRS)}
ATTRIBUTES = [*shapes.COLORS, *shapes.SHAPES]
HAS = torch.tensor([[float(a in o) for o in OBJECTS] for a in ATTRIBUTES])  # [12, 35]: which shapes a word means
TOKENS = {w: i for i, w in enumerate(SPECIAL + WORDS + NAMES)}
END = TOKENS["</s>"]


class Tied(nn.Module):
    """While training, the token of two shapes is the sum of the tokens of each, and a row for `and`; the same for both
    orders.  The exported table has plain rows."""

    def forward(self, rows):
        names = rows[FIRST:FIRST + N]
        pairs = names[PAIR[0]] + names[PAIR[1]] + rows[-1]
        return torch.cat([rows[:-1], pairs, pairs])

    def right_inverse(self, table):
        return torch.cat([table[:FIRST + N], torch.zeros_like(table[:1])])


def build():
    m = M.BitGen(M.Config(vocab_size=len(TOKENS)))
    parametrize.register_parametrization(m.token_embedding, "weight", Tied(), unsafe=True)
    return m


def exact(one):
    """One id a row as a distribution over the columns where that id stands."""
    same = (one[:, None] == one[None]).float()
    return same / same.sum(1, keepdim=True)


def contrastive(m, head, means, present):
    """means [n, V] of the patches of n pictures; present [n, 35]: 1 for each shape in the picture.
    The loss, and how often the right one of all 455 phrases comes first for a picture."""
    f = m.cross_modal_fusion
    temperature = f.temperature.clamp(0.01, 1)
    image = f.image_feature(means.unsqueeze(1))
    ids = FIRST + torch.arange(N + len(PAIRS))
    text = f.text_feature(m.token_embedding(ids) + m.pos_embedding.weight[0])
    phrases = torch.tensor([CLASS.get(frozenset(p.nonzero()[:, 0].tolist()), -1) for p in present])
    some = phrases >= 0
    logits = image[some] @ text.T / temperature
    loss = F.cross_entropy(logits, phrases[some]) + F.cross_entropy(logits[:, phrases[some]].T, exact(phrases[some]))
    # A single word ("red", "star") or shape means every picture that has it, and the more the less else is there.
    single = torch.tensor([TOKENS[w] for w in (*ATTRIBUTES, *NAMES[:N])])
    fits = torch.cat([(HAS @ present.T) > 0, present.T > 0]).float() / present.sum(1) ** 2
    seen = fits.sum(1) > 0
    words = f.text_feature(m.token_embedding(single[seen]) + m.pos_embedding.weight[0])
    loss = loss + 0.3 * F.cross_entropy(words @ image.T / temperature, fits[seen] / fits[seen].sum(1, keepdim=True))
    loss = loss + F.binary_cross_entropy_with_logits(head(means), present) * 3
    return loss, (logits.argmax(1) == phrases[some]).float().mean().item()


@torch.no_grad()
def write_first(conv):
    """Filters 7x7: eight directions of edges in brightness, red-green and blue-yellow, then spots of eight colours."""
    y, x = torch.meshgrid(torch.arange(7.0) - 3, torch.arange(7.0) - 3, indexing="ij")
    bell = torch.exp(-(x * x + y * y) / (2 * 1.6 ** 2))
    filters = []
    for mix in ((1, 1, 1), (1, -1, 0), (-0.5, -0.5, 1)):
        for k in range(8):
            angle = torch.tensor(math.pi * k / 4)
            filters.append(torch.tensor(mix).view(3, 1, 1) * bell * (x * angle.cos() + y * angle.sin()))
    for mix in ((1, 1, 1), (-1, -1, -1), (1, -1, 0), (-1, 1, 0), (-0.5, -0.5, 1), (0.5, 0.5, -1), (1, -0.5, -0.5), (-1, 0.5, 0.5)):
        filters.append(torch.tensor(mix).view(3, 1, 1) * bell)
    filters = torch.stack(filters)
    conv.weight.copy_(filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    conv.bias.zero_()


@torch.no_grad()
def first(m, images, side):
    """What the first convolution, its norm and pooling make of pictures: bfloat16 [n, 32, side / 4, side / 4]."""
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (M.MEAN, M.STD))
    encoder = m.cross_modal_fusion.vision_encoder[:4]
    encoder.eval()
    out = []
    for x in images.split(50):
        x = (F.interpolate(x, (side, side), mode="bilinear", align_corners=False) - mean) / std
        out.append(encoder(x.contiguous(memory_format=torch.channels_last)).bfloat16())
    return torch.cat(out)


def rest(m, maps):
    """The mean vision features [n, V] of pictures, from what `first` made of them."""
    f = m.cross_modal_fusion
    return f.vision_to_embed(f.vision_encoder[4:10](maps.float().contiguous(memory_format=torch.channels_last)).mean((2, 3)))


@torch.no_grad()
def settle(m):
    """The first convolution's filters, and its norm's statistics over whole pictures."""
    conv, norm = m.cross_modal_fusion.vision_encoder[:2]
    write_first(conv)
    norm.momentum = None  # a plain mean
    norm.train()
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (M.MEAN, M.STD))
    x = F.interpolate(draw("train", 0, 64)[0], (M.SIDE, M.SIDE), mode="bilinear", align_corners=False)
    norm(conv((x - mean) / std))
    norm.eval()


def crops(m, count, rng):
    """Maps of `count` crops, a quarter of a picture's size, and which shape each shows (-1: none)."""
    maps, obj = [], []
    for i in range(0, count, 500):
        ims, o = zip(*[scenes.crop(rng, i + k < count // 32) for k in range(500)])
        maps.append(first(m, scenes.pixels(ims), M.SIDE // 2))
        obj += o
    return torch.cat(maps), obj


def crops_batch(m, rng, data, size):
    """Mean features of made-up pictures of one, two and three shapes, out of `size` crops; and their shapes [n, 35]."""
    maps, obj = data
    blanks = len(obj) // 32
    picked = rng.sample(range(blanks), 2) + rng.sample(range(blanks, len(obj)), size)
    v = rest(m, maps[picked])
    obj = [obj[k] for k in picked]
    full, sets = range(2, size + 2), [[k] for k in range(2, size + 2)]
    while len(sets) < 4 * size:
        s = rng.sample(full, 3 if len(sets) % 5 == 0 else 2)
        if len({OBJECTS[obj[k]][0] for k in s}) == len({OBJECTS[obj[k]][1] for k in s}) == len(s):
            sets.append(s)
    weight, present = torch.zeros(len(sets), len(v)), torch.zeros(len(sets), N)
    for w, p, s in zip(weight, present, sets):
        w[s] = 0.25
        p[[obj[k] for k in s]] = 1
    weight[:, :2] = (1 - weight.sum(1, keepdim=True)) / 2
    return weight @ v, present


def draw(split, start, count, most=3):
    """`count` pictures [n, 3, 128, 128] and their shapes [n, 35]."""
    ims, objects = zip(*[scenes.scene(split, i, most) for i in range(start, start + count)])
    present = torch.zeros(count, N)
    for row, o in zip(present, objects):
        row[[OBJECTS.index(x) for x in o]] = 1
    return scenes.pixels(ims), present


def wholes(m, count):
    """Maps of `count` pictures of training, and their shapes."""
    parts = [draw("train", i, 100) for i in range(0, count, 100)]
    return torch.cat([first(m, x, M.SIDE) for x, _ in parts]), torch.cat([p for _, p in parts])


@torch.no_grad()
def features(m, data):
    """Mean vision features of all pictures, by the vision encoder as it is."""
    m.eval()
    out = torch.cat([rest(m, x) for x in data[0].split(50)]), data[1]
    m.train()
    return out


class Words:
    """Token ids of prompts and captions."""

    def __init__(self):
        from tokenizers import Tokenizer
        self.tok = Tokenizer.from_file(os.path.join(scenes.HERE, "model", "tokenizer.json"))
        self.prompts = [self.tok.encode(p).ids for p in scenes.PROMPTS]

    def target(self, present):
        objects = [OBJECTS[i] for i in present.nonzero()[:, 0].tolist()]
        return self.tok.encode(scenes.caption(objects)).ids + [END]


def captions(m, words, rng, means, present):
    """Loss of captions after a prompt (each token from those before it), and of the phrase itself by the original's
    loss (each token from those up to itself); and the share of captions said exactly."""
    prompt = rng.choice(words.prompts)
    embeddings = m.encode(torch.tensor([prompt]).expand(len(means), -1), means.unsqueeze(1))
    said = [words.target(p) for p in present]
    longest = max(map(len, said))
    want = torch.tensor([s + [-100] * (longest - len(s)) for s in said])
    given = torch.cat([torch.full((len(said), 1), prompt[0]), want[:, :-1].clamp_min(0)], 1)
    logits = m.decode(given, embeddings)
    loss = F.cross_entropy(logits.flatten(0, 1), want.flatten(), ignore_index=-100)
    right = ((logits.argmax(-1) == want) | (want < 0)).all(1).float().mean().item()
    phrases = torch.tensor([CLASS.get(frozenset(p.nonzero()[:, 0].tolist()), -1) for p in present])
    some = phrases >= 0
    ids = FIRST + phrases[some][:, None]
    copied = m.decode(ids, m.encode(ids, means[some].unsqueeze(1)))
    return loss + 0.2 * F.cross_entropy(copied.flatten(0, 1), ids.flatten()), right


@torch.no_grad()
def recall(m, split="valid", count=100):
    """Among `count` pictures with different phrases: text -> picture @1, @5, picture -> text @1, @5."""
    m.eval()
    ims, ids = [], []
    for _, im, objects in distinct(split, count):
        ims.append(im)
        ids.append(TOKENS[scenes.phrase(objects)])
    image = m.image_features(m.see(scenes.pixels(ims)))
    sim = m.text_features(torch.tensor(ids)[:, None]) @ image.T
    m.train()
    return [hits(s, k) for s in (sim, sim.T) for k in (1, 5)]


def hits(sim, k):
    """How often a row's own column is among its k largest."""
    return (sim.topk(k).indices == torch.arange(len(sim))[:, None]).any(1).float().mean().item()


def distinct(split, count):
    """The first pictures of a split that show one or two shapes and no phrase twice: [(number, picture, shapes)]."""
    out, known, i = [], set(), 0
    while len(out) < count:
        im, objects = scenes.scene(split, i, most=2)
        if tuple(objects) not in known:
            known.add(tuple(objects))
            out.append((i, im, objects))
        i += 1
    return out


class Run:
    def __init__(self, a):
        self.a, self.step, self.m, self.head = a, 0, build(), nn.Linear(128, N)
        encoder = self.m.cross_modal_fusion.vision_encoder.to(memory_format=torch.channels_last)
        encoder[:4].requires_grad_(False)
        self.file, self.words, self.data, self.now = os.path.join(a.out, "train.pt"), Words(), None, None
        self.params = [p for p in (*self.m.parameters(), *self.head.parameters()) if p.requires_grad]
        self.opt = torch.optim.AdamW(self.params, a.lr, weight_decay=0.01)
        if os.path.exists(self.file):
            s = torch.load(self.file)
            self.m.load_state_dict(s["model"]), self.head.load_state_dict(s["head"]), self.opt.load_state_dict(s["opt"])
            self.step = s["step"]
        else:
            settle(self.m)
        self.train()

    def train(self):
        self.m.train()
        self.m.cross_modal_fusion.vision_encoder[:4].eval()

    def save(self):
        s = {"model": self.m.state_dict(), "head": self.head.state_dict(), "opt": self.opt.state_dict(), "step": self.step}
        torch.save(s, self.file + ".tmp")
        os.replace(self.file + ".tmp", self.file)

    def phase(self):
        """Its number, the share of it that is done, and its learning rate's factor: up at once, down to 0 linearly."""
        n, ends = self.step, (self.a.crops, self.a.crops + self.a.scenes, self.a.crops + self.a.scenes + self.a.words)
        k = sum(n >= e for e in ends[:2])
        begin = (0, *ends)[k]
        t = (n - begin) / max(1, ends[k] - begin)
        return k, t, min(1, (n - begin + 1) / 50) * min(1, (1 - t) / 0.7) * (1, 0.5, 0.7)[k]

    def prepare(self, k, rng):
        """The pictures of a phase; made again when the run goes on after a stop."""
        if self.now != k:
            if k == 0:
                self.data = crops(self.m, self.a.many, rng)
            elif self.now != 1:
                self.data = wholes(self.m, self.a.pictures)
            if k == 2:
                self.data = features(self.m, self.data)
            self.train()
            self.now = k

    def one(self, rng):
        a, m = self.a, self.m
        k, t, rate = self.phase()
        self.prepare(k, rng)
        if k == 0:
            means, present = crops_batch(m, rng, self.data, a.batch)
        else:
            pick = torch.tensor(rng.sample(range(a.pictures), 32 if k == 1 else 64))
            means, present = (d[pick] for d in self.data)
            means = rest(m, means) if k == 1 else means
        loss, right = contrastive(m, self.head, means, present)
        said = 0.0
        if k == 2:
            M.S.lam, M.S.noise = min(1.0, max(0.0, (t - 0.25) / 0.15)), True
            more, said = captions(m, self.words, rng, means, present)
            M.S.noise = False
            loss = loss * 0.3 + more
        for g in self.opt.param_groups:
            g["lr"] = a.lr * rate
        self.opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 5.0)
        self.opt.step()
        self.step += 1
        return [loss.item(), right, said]


def main(a):
    torch.set_num_threads(a.threads)
    os.makedirs(a.out, exist_ok=True)
    torch.manual_seed(1)
    run = Run(a)
    rng = random.Random(f"train-{run.step}")
    begin, used, mean = time.time(), time.process_time(), None
    first, total = run.step, a.crops + a.scenes + a.words
    while run.step < total:
        now = torch.tensor(run.one(rng))
        mean = now if mean is None else mean.lerp(now, 0.05)
        if run.step % 50 == 0 or run.step == total:
            n = run.step - first
            print(f"{run.step} phase {run.phase()[0] + 1} min {(time.time() - begin) / 60:.1f} s/step {(time.time() - begin) / n:.2f} "
                  f"cpu {(time.process_time() - used) / n:.2f} loss {mean[0]:.3f} picture->phrase {mean[1]:.3f} captions {mean[2]:.3f}", flush=True)
        if run.step % 100 == 0 or run.step == total:
            run.save()
        if run.step % 500 == 0 or run.step == total or run.step == a.crops + a.scenes:
            print("valid: text->picture @1 {:.2f} @5 {:.2f} picture->text @1 {:.2f} @5 {:.2f}".format(*recall(run.m)), flush=True)
            run.train()


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--crops", type=int, default=800, help="steps on crops")
    ap.add_argument("--scenes", type=int, default=300, help="steps on whole pictures")
    ap.add_argument("--words", type=int, default=2000, help="steps behind the vision encoder")
    ap.add_argument("--many", type=int, default=8000, help="crops drawn")
    ap.add_argument("--pictures", type=int, default=4000, help="whole pictures drawn")
    ap.add_argument("--batch", type=int, default=48, help="crops a step")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--out", default="run")
    main(ap.parse_args())
