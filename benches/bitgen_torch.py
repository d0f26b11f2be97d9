"""Images and texts a second of BitGen's encoders in plain PyTorch, to compare `ternion bench -m MODEL` with.

    python benches/bitgen_torch.py MODEL/pytorch_model.bin [--threads N] [--repetitions N] [--device cuda]

MODEL is a state dict with DINOv2. What does not change from image to image (interpolated positions, joined matrices of
q, k and v) is computed once. Features need no ternary weights: only the decoder of captions has any.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

EPS, HEAD, SIZE = 1e-6, 64, 224


class BitGen:
    def __init__(self, state, device="cpu"):
        self.w = {name.removeprefix("module."): value.float().to(device) for name, value in state.items()}
        self.device, dino = device, "cross_modal_fusion.dinov2_model."
        get = lambda name: self.w[dino + name]
        self.patches = [get(f"embeddings.patch_embeddings.projection.{part}") for part in ("weight", "bias")]
        self.patch = self.patches[0].shape[-1]
        learned, side = get("embeddings.position_embeddings"), SIZE // self.patch
        grid = round((learned.shape[1] - 1) ** 0.5)
        table = learned[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(side, side), mode="bicubic", align_corners=False)
        self.positions = table.flatten(2).transpose(1, 2)
        self.first = get("embeddings.cls_token") + learned[:, :1]
        self.layers = []
        while f"{dino}encoder.layer.{len(self.layers)}.norm1.weight" in self.w:
            self.layers.append(self.layer(f"{dino}encoder.layer.{len(self.layers)}."))
        self.norm = [get("layernorm.weight"), get("layernorm.bias")]

    def layer(self, prefix):
        part = lambda name: [self.w[f"{prefix}{name}.{kind}"] for kind in ("weight", "bias")]
        qkv = [part(f"attention.attention.{name}") for name in ("query", "key", "value")]
        return {
            "norm1": part("norm1"),
            "qkv": [torch.cat(parts).contiguous() for parts in zip(*qkv)],
            "out": part("attention.output.dense"),
            "scale1": self.w[f"{prefix}layer_scale1.lambda1"],
            "norm2": part("norm2"),
            "fc1": part("mlp.fc1"),
            "fc2": part("mlp.fc2"),
            "scale2": self.w[f"{prefix}layer_scale2.lambda1"],
        }

    def linear(self, name, x):
        name = f"cross_modal_fusion.{name}"
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def features(self, side, x):
        return F.normalize(torch.tanh(self.linear(f"cross_modal_{side}_pooler_itc.0", x)), dim=-1, eps=1e-8)

    def images(self, pixels):
        """[n, 3, 224, 224], normalised -> features [n, d]."""
        x = F.conv2d(pixels, *self.patches, stride=self.patch).flatten(2).transpose(1, 2) + self.positions
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        n, rows, d = x.shape
        for w in self.layers:
            h = F.linear(F.layer_norm(x, (d,), *w["norm1"], EPS), *w["qkv"])
            q, k, v = h.view(n, rows, 3, d // HEAD, HEAD).permute(2, 0, 3, 1, 4)
            h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, rows, d)
            x = x + w["scale1"] * F.linear(h, *w["out"])
            h = F.gelu(F.linear(F.layer_norm(x, (d,), *w["norm2"], EPS), *w["fc1"]))
            x = x + w["scale2"] * F.linear(h, *w["fc2"])
        x = self.linear("vision_to_embed", F.layer_norm(x, (d,), *self.norm, EPS)[:, 1:])
        return self.features("image", self.linear("cross_modal_image_transform_itc", x).mean(1))

    def texts(self, first):
        """The first token of each text [n] -> features [n, d]."""
        x = self.w["token_embedding.weight"][first] + self.w["pos_embedding.weight"][0]
        return self.features("text", self.linear("cross_modal_text_transform_itc", x))


def measure(name, n, run, repetitions, device):
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    rates = [n / t for t in times[1:]]  # the first one does not count
    deviation = statistics.stdev(rates) if len(rates) > 1 else 0.0
    print(f"{name:12} {statistics.mean(rates):10.2f} ± {deviation:.2f} a second, {1e3 * n / statistics.mean(rates):.1f} ms")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("model")
    args.add_argument("--threads", type=int, default=torch.get_num_threads())
    args.add_argument("--repetitions", type=int, default=5)
    args.add_argument("--device", default="cpu")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model = BitGen(torch.load(args.model, map_location="cpu", weights_only=True), args.device)
    print(f"PyTorch {torch.__version__}, {args.device}, {args.threads} threads, f32")
    for n in (1, 8):
        pixels = torch.randn(n, 3, SIZE, SIZE, device=args.device)
        name = "image" if n == 1 else f"image x {n}"
        measure(name, n, lambda: model.images(pixels), args.repetitions, args.device)
    first = torch.arange(64, device=args.device) * 31 % len(model.w["token_embedding.weight"])
    measure("text x 64", 64, lambda: model.texts(first), args.repetitions, args.device)


if __name__ == "__main__":
    main()
