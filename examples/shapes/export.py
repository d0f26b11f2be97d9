"""Export a trained model: EmberNet's files, and what PyTorch computes with them on fixed new scenes.

    python export.py run/last.safetensors run/export --golden run/golden
    ternion convert run/export model
"""
import argparse
import json
import os
import shutil

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import draw
import model as M
import shapes
from data import HERE, TEMPLATE, Prompts, pixels, to_pixels

GOLDEN = [0, 3, 4, 7]  # the families whose first scene is recorded number by number


def config(c):
    """EmberNet's config.json in its flat form."""
    sizes = {k: v for k, v in M.flat_config(c).items() if not k.startswith("vision_") and k not in ("image_size", "patch_size")}
    return {"model_type": "embernet_vlm", **sizes, "use_shared_expert": True, "activation_bits_override": 8,
            "expert_domains": shapes.FAMILIES,
            "vision_config": {
                "image_size": c.image_size, "patch_size": c.patch_size, "hidden_size": c.vision_hidden_size,
                "intermediate_size": c.vision_intermediate_size, "num_hidden_layers": c.vision_num_layers,
                "num_attention_heads": c.vision_num_heads}}


@torch.no_grad()
def answers(m, prompts, folder, entries, batch=64):
    """Greedy answers of the quantised model; prompts of one length go together."""
    groups, out = {}, [None] * len(entries)
    for k, e in enumerate(entries):
        ids = prompts.prefix + prompts.question(e["question"])
        assert ids == prompts.tok.encode(TEMPLATE.format(prompt=e["question"])).ids
        groups.setdefault(len(ids), []).append((k, ids))
    for group in groups.values():
        for n in range(0, len(group), batch):
            part = group[n:n + batch]
            px = to_pixels([pixels(Image.open(os.path.join(folder, entries[k]["image"])).convert("RGB")) for k, _ in part])
            for (k, _), ids in zip(part, m.generate(m.vision(px), torch.tensor([ids for _, ids in part]))):
                out[k] = prompts.tok.decode(ids, skip_special_tokens=True).strip()
    return out


@torch.no_grad()
def golden(m, prompts, folder, entries):
    """Pixels, image embeddings, ids, last logits and routing of one scene a family, as `sampleN.*`."""
    out = {}
    for n, f in enumerate(GOLDEN):
        e = next(e for e in entries if e["family"] == shapes.FAMILIES[f])
        e["golden"] = f"sample{n}"
        px = to_pixels([pixels(Image.open(os.path.join(folder, e["image"])).convert("RGB"))])
        ids = torch.tensor([prompts.prefix + prompts.question(e["question"])])
        emb = m.vision(px)
        logits, info = m.decode(*m.prefill_inputs(emb, ids))
        values = {"pixel_values": px, "image_embeds": emb, "input_ids": ids[0].int(), "last_logits": logits[-1],
                  "generated_ids": torch.tensor(m.generate(emb, ids)[0], dtype=torch.int32)}
        for i, (router, chosen, _) in enumerate(info):
            values |= {f"layer.{i}.topk_indices": chosen.int(), f"layer.{i}.router_logits": router}
        out |= {f"sample{n}.{k}": v.contiguous() for k, v in values.items()}
    return out


def main(a):
    torch.set_num_threads(a.threads)
    os.makedirs(a.out, exist_ok=True)
    c, prompts = M.Config(), Prompts()
    weights = load_file(a.checkpoint)
    m = M.from_checkpoint(M.EmberNet(c), weights).eval()
    save_file(weights, os.path.join(a.out, "model.safetensors"), {"format": "pt"})
    shutil.copy(os.path.join(HERE, "model", "tokenizer.json"), a.out)
    with open(os.path.join(a.out, "config.json"), "w") as f:
        json.dump(config(c), f, indent=1)
    if a.golden:
        entries = draw.draw(a.golden, "test", 200_000, 25)
        for e, got in zip(entries, answers(m, prompts, a.golden, entries)):
            e["pytorch"] = got
        save_file(golden(m, prompts, a.golden, entries), os.path.join(a.golden, "golden.safetensors"))
        draw.write(a.golden, entries)
    if a.scenes:
        folder = os.path.join(a.out, "scenes")
        entries = draw.draw(folder, "test", 0, a.scenes)
        right = [e["answer"] == got for e, got in zip(entries, answers(m, prompts, folder, entries))]
        for f, family in enumerate(shapes.FAMILIES):
            print(f"{family:20} {sum(right[f * a.scenes:(f + 1) * a.scenes]) / a.scenes:.3f}")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint")
    ap.add_argument("out")
    ap.add_argument("--golden", help="folder for 25 scenes a family with PyTorch's answers, and golden.safetensors")
    ap.add_argument("--scenes", type=int, default=0, help="also measure on this many new scenes a family")
    ap.add_argument("--threads", type=int, default=2)
    main(ap.parse_args())
