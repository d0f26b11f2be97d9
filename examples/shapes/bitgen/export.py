"""Export a trained model in BitGen's files, measure it on new scenes, and record what PyTorch computes with it.

    python export.py run/train.pt run/export --golden run/golden
"""
import argparse
import json
import os
import shutil
from dataclasses import asdict

import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.utils import parametrize

import draw
import model as M
import scenes
from train import END, N, TOKENS, Words, build, hits
from train import draw as pictures

RECORDED = 4  # scenes recorded number by number


def load(file):
    """The trained model as a plain BitGen in eval mode, its numbers rounded to half precision, so that packing them
    that way changes nothing."""
    m, s = build(), torch.load(file)
    m.load_state_dict(s["model"])
    parametrize.remove_parametrizations(m.token_embedding, "weight")
    with torch.no_grad():
        for v in (v for v in m.state_dict().values() if v.is_floating_point()):
            v.copy_(v.half())
    return m.eval(), s["step"]


@torch.no_grad()
def fill_queues(m):
    """The features of the last pictures and phrases of training, as the original's trainer leaves them."""
    f, n = m.cross_modal_fusion, m.c.queue_size
    x, present = pictures("train", 0, n, most=2)
    ids = [[TOKENS[scenes.phrase([scenes.OBJECTS[i] for i in p.nonzero()[:, 0].tolist()])]] for p in present]
    f.image_queue.copy_(m.image_features(see(m, x)).T)
    f.text_queue.copy_(m.text_features(torch.tensor(ids)).T)
    for queue in (f.image_queue, f.text_queue):
        queue.copy_(queue.half())


def see(m, x):
    return torch.cat([m.see(part) for part in x.split(25)])


@torch.no_grad()
def describe(m, words, seen, prompt="describe the image"):
    ids = torch.tensor([words.tok.encode(prompt).ids])
    out, _ = m.greedy(ids, seen, 12, END)
    return words.tok.decode(out[0, 1:].tolist())


@torch.no_grad()
def measure(m, words, folder, entries):
    """Similarity of all captions (rows) and pictures (columns) of a folder, and the captions said."""
    seen = see(m, scenes.pixels([Image.open(os.path.join(folder, e["image"])).convert("RGB") for e in entries]))
    ids = [words.tok.encode(e["caption"]).ids[:1] for e in entries]
    sim = m.text_features(torch.tensor(ids)) @ m.image_features(seen).T / m.cross_modal_fusion.temperature
    for title, s in (("text -> picture", sim), ("picture -> text", sim.T)):
        print(f"{title}: recall@1 {hits(s, 1):.2f} @5 {hits(s, 5):.2f}")
    for e, v in zip(entries, seen):
        e["pytorch"] = describe(m, words, v[None])
    said = [e["pytorch"] == e["description"] for e in entries]
    print(f"captions exactly right: {sum(said)} of {len(said)}")
    return sim


@torch.no_grad()
def wider(m, words):
    """Captions of 300 new scenes of one to three shapes; and asking 300 scenes for one shape or one word."""
    x, present = pictures("wider", 0, 300)
    seen = see(m, x)
    objects = [[scenes.OBJECTS[i] for i in p.nonzero()[:, 0].tolist()] for p in present]
    right = [(len(o), describe(m, words, v[None]) == scenes.caption(o)) for o, v in zip(objects, seen)]
    for n in (1, 2, 3):
        these = [r for k, r in right if k == n]
        print(f"captions of {n} shapes exactly right: {sum(these)} of {len(these)}")
    image, words = m.image_features(seen), [*scenes.shapes.COLORS, *scenes.shapes.SHAPES]
    has = torch.tensor([[any(w in o for o in objs) for objs in objects] for w in words])
    for title, asked, fits in (("one shape", [scenes.name(o) for o in scenes.OBJECTS], present.T > 0), ("one word", words, has)):
        top = (m.text_features(torch.tensor([[TOKENS[t]] for t in asked])) @ image.T).topk(5).indices
        print(f"{title}: the first 5 of 300 pictures have it in {fits.gather(1, top).float().mean():.3f}")


@torch.no_grad()
def golden(m, words, folder, entries, sim):
    """Everything on the way for the first scenes, one at a time, as `sampleN.*`; `similarity` of the whole folder."""
    out = {"similarity": sim}
    prompt = torch.tensor([words.tok.encode("describe the image").ids])
    for n, e in enumerate(entries[:RECORDED]):
        seen = m.see(scenes.pixels([Image.open(os.path.join(folder, e["image"])).convert("RGB")]))
        text = torch.tensor([words.tok.encode(e["caption"]).ids])
        said, logits = m.greedy(prompt, seen, 12, END)
        values = {"vision_features": seen, "image_feature": m.image_features(seen), "text_feature": m.text_features(text),
                  "caption_ids": text.int(), "prompt_ids": prompt.int(), "embeddings": m.encode(prompt, seen),
                  "greedy_ids": said.int(), "step_logits": logits}
        out |= {f"sample{n}.{k}": v.contiguous() for k, v in values.items()}
    return out


def main(a):
    torch.set_num_threads(a.threads)
    os.makedirs(a.out, exist_ok=True)
    words = Words()
    m, step = load(a.checkpoint)
    fill_queues(m)
    torch.save(m.state_dict(), os.path.join(a.out, "pytorch_model.bin"))
    shutil.copy(os.path.join(scenes.HERE, "model", "tokenizer.json"), a.out)
    # `next_token` is this project's addition: the decoder was trained to say the next token, not the present one.
    for name, value in (("config", asdict(m.c) | {"next_token": True}), ("training_metadata", {"stage": "stage1", "step": step})):
        with open(os.path.join(a.out, name + ".json"), "w") as f:
            json.dump(value, f, indent=1)
    ternary = sum(x.weight.numel() for x in m.modules() if isinstance(x, M.BitNetLinear))
    rest = sum(v.numel() for v in m.state_dict().values()) - ternary
    size = (2 * rest + ternary / 4) / 2**20
    print(f"{sum(p.numel() for p in m.parameters())} parameters, {ternary} of them ternary: {size:.2f} MiB with 2-bit codes and "
          f"half precision; {N} shapes, {len(TOKENS)} tokens")
    wider(m, words)
    if a.golden:
        entries = draw.draw(a.golden)
        sim = measure(m, words, a.golden, entries)
        save_file(golden(m, words, a.golden, entries, sim), os.path.join(a.golden, "golden.safetensors"))
        draw.write(a.golden, entries)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("out")
    ap.add_argument("--golden", help="folder for 100 new scenes with PyTorch's captions, and golden.safetensors")
    ap.add_argument("--threads", type=int, default=2)
    main(ap.parse_args())
