"""A small EmberNet: SigLIP-style vision encoder, compressor, pooler, projector, and a decoder of
BitLinear layers with 8 domain experts (top 2) and a shared expert.  Ternary weights and 8-bit
activations are trained with straight-through gradients.  Master weights are float32.

Experts are kept stacked here ([9, out, in], the last one is the shared expert);
`to_checkpoint` and `from_checkpoint` convert to and from the tensor names of EmberNet.
"""
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab_size: int = 512
    hidden_size: int = 128
    intermediate_size: int = 192
    num_layers: int = 4
    num_attention_heads: int = 4
    num_kv_heads: int = 2
    max_position_embeddings: int = 256
    num_experts: int = 8
    num_experts_per_tok: int = 2
    num_image_tokens: int = 16
    image_size: int = 128
    patch_size: int = 16
    vision_hidden_size: int = 128
    vision_intermediate_size: int = 256
    vision_num_layers: int = 4
    vision_num_heads: int = 4
    router_aux_loss_coef: float = 0.01
    expert_supervision_coef: float = 0.1
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    image_token_id: int = 3
    weight_quant: str = "absmean"


class State:
    """How the BitLinear layers compute: lam 0 = full precision, 1 = quantised; gemm = matmul dtype."""
    def __init__(self):
        self.lam = torch.tensor(1.0)
        self.gemm = torch.float32


S = State()


def rms_unit(x, eps):
    x = x.float().clamp(-100, 100)
    v = x.pow(2).mean(-1, keepdim=True).clamp_min(eps)
    return (x * torch.rsqrt(v + eps)).clamp(-10, 10)


def quant_act(v, lam):
    """8-bit integers (as floats, straight-through) and the step size, per token."""
    v = v.clamp(-50, 50)
    step = v.detach().abs().amax(-1, keepdim=True).clamp_min(1e-4) / 127
    u = v / step
    return u + lam * (u.round().clamp(-128, 127) - u).detach(), step


def quant_weight(w, lam, rule):
    """Ternary matrix (straight-through) and scale; w is [out, in] or a stack [n, out, in]."""
    d = w.detach()
    scale = d.abs().mean((-2, -1), keepdim=True).clamp_min(1e-8)
    if rule == "absmean":
        t = (d / scale).round().clamp(-1, 1)
    else:
        t = torch.sign(d - d.mean((-2, -1), keepdim=True))
    u = w / scale
    return u + lam * (t - u).detach(), scale


def bit_matmul(v, t, scale, lam, gemm):
    q, step = quant_act(v, lam)
    return F.linear(q.to(gemm), t.to(gemm)).float() * (step * scale)


def expert(xhat, ng, tg, sg, nu, tu, su, nd, td, sd, lam, gemm):
    g = bit_matmul(xhat * ng, tg, sg, lam, gemm).clamp(-20, 20)
    u = bit_matmul(xhat * nu, tu, su, lam, gemm)
    h = (F.silu(g) * u).clamp(-1000, 1000)
    return bit_matmul(rms_unit(h, 1e-5) * nd, td, sd, lam, gemm)


def padded(v, to=64):
    """v with zeros up to a multiple of `to`: matmul kernels are made anew for every shape, so few are wanted."""
    return F.pad(v, (0, -len(v) % to))


EXPERT = [expert]  # replaced by a compiled version in training


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return rms_unit(x, self.eps) * self.weight


class BitLinear(nn.Module):
    def __init__(self, din, dout, rule):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dout, din) / math.sqrt(din))
        self.norm, self.rule = RMSNorm(din, 1e-5), rule

    def forward(self, x):
        t, s = quant_weight(self.weight, S.lam, self.rule)
        return bit_matmul(self.norm(x), t, s, S.lam, S.gemm)


def linear(x, w, b=None):
    if S.gemm == torch.float32:
        return F.linear(x, w, b)
    y = F.linear(x.to(S.gemm), w.to(S.gemm)).float()
    return y if b is None else y + b


class Linear(nn.Linear):
    def forward(self, x):
        return linear(x, self.weight, self.bias)


class MHA(nn.Module):
    def __init__(self, dim, heads=8):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) / math.sqrt(dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)

    def forward(self, q, kv):
        e, h = q.shape[-1], self.heads
        w, b = self.in_proj_weight, self.in_proj_bias
        q = linear(q, w[:e], b[:e])
        k, v = linear(kv, w[e:], b[e:]).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (h, e // h)).transpose(1, 2) for t in (q, k, v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c.vision_hidden_size
        self.heads = c.vision_num_heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.self_attn = nn.ModuleDict({k: Linear(d, d) for k in ("k_proj", "v_proj", "q_proj", "out_proj")})
        self.mlp = nn.ModuleDict({"fc1": Linear(d, c.vision_intermediate_size), "fc2": Linear(c.vision_intermediate_size, d)})

    def forward(self, x):
        a, n = self.self_attn, self.layer_norm1(x)
        q, k, v = (a[p](n).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in ("q_proj", "k_proj", "v_proj"))
        x = x + a["out_proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x)), approximate="tanh"))


class Vision(nn.Module):
    """SigLIP encoder, compressor, pooler and projector: pixel values to image embeddings."""
    def __init__(self, c):
        super().__init__()
        d, e, n = c.vision_hidden_size, c.hidden_size, c.num_image_tokens
        self.grid, self.patch = c.image_size // c.patch_size, c.patch_size
        self.patch_embedding = nn.Conv2d(3, d, c.patch_size, c.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(self.grid ** 2, d) * 0.1)
        self.layers = nn.ModuleList(VisionLayer(c) for _ in range(c.vision_num_layers))
        self.post_layernorm = nn.LayerNorm(d, eps=1e-6)
        self.pre_norm, self.proj, self.post_norm = RMSNorm(4 * d, 1e-5), Linear(4 * d, e), RMSNorm(e, 1e-5)
        self.pool_queries = nn.Parameter(torch.randn(1, n, e) * 0.5)
        self.pool_attn, self.pool_norm = MHA(e), RMSNorm(e, 1e-5)
        self.query_tokens = nn.Parameter(torch.randn(1, n, e) * 0.5)
        self.vision_proj = BitLinear(e, e, c.weight_quant)
        self.cross = nn.ModuleList(MHA(e) for _ in range(2))
        self.ffn0, self.ffn2 = BitLinear(e, 4 * e, c.weight_quant), BitLinear(4 * e, e, c.weight_quant)
        self.ln_q, self.ln_ff = RMSNorm(e, 1e-5), RMSNorm(e, 1e-5)

    def forward(self, pixels, tokens=False):
        """Image embeddings [B, image tokens, hidden]; with `tokens` also the encoder's patch tokens."""
        b, g, p = pixels.shape[0], self.grid, self.patch
        x = pixels.reshape(b, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, 3 * p * p)
        x = linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias) + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        patches = x = self.post_layernorm(x)
        x = x.reshape(b, g // 2, 2, g // 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, g * g // 4, -1)
        x = self.post_norm(self.proj(self.pre_norm(x)))
        q = self.pool_queries.expand(b, -1, -1)
        x = self.pool_norm(q + self.pool_attn(q, x))
        v = self.vision_proj(x)
        q = self.query_tokens.expand(b, -1, -1)
        for attn in self.cross:
            q = self.ln_q(q + attn(q, v))
        e = self.ln_ff(q + self.ffn2(F.gelu(self.ffn0(q)))) * 0.1
        return (e, patches) if tokens else e


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        e, f, n = c.hidden_size, c.intermediate_size, c.num_experts + 1
        self.c, hd = c, c.hidden_size // c.num_attention_heads
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(e, 1e-6), RMSNorm(e, 1e-6)
        self.q_proj, self.o_proj = BitLinear(e, e, c.weight_quant), BitLinear(e, e, c.weight_quant)
        self.k_proj, self.v_proj = (BitLinear(e, c.num_kv_heads * hd, c.weight_quant) for _ in range(2))
        self.router = nn.Linear(e, c.num_experts)
        nn.init.normal_(self.router.weight, std=0.02)
        nn.init.zeros_(self.router.bias)
        self.gate, self.up = (nn.Parameter(torch.randn(n, f, e) / math.sqrt(e)) for _ in range(2))
        self.down = nn.Parameter(torch.randn(n, e, f) / math.sqrt(f) * 0.5)
        self.gate_norm, self.up_norm = (nn.Parameter(torch.ones(n, e)) for _ in range(2))
        self.down_norm = nn.Parameter(torch.ones(n, f))

    def attention(self, x, cos, sin, mask):
        c, b, l = self.c, *x.shape[:2]
        hd = c.hidden_size // c.num_attention_heads
        xhat = rms_unit(self.input_layernorm(x), 1e-5)  # the BitLinear norm, shared by q, k and v
        q, k, v = (bit_matmul(xhat * m.norm.weight, *quant_weight(m.weight, S.lam, m.rule), S.lam, S.gemm)
                   .view(b, l, -1, hd).transpose(1, 2) for m in (self.q_proj, self.k_proj, self.v_proj))

        def rope(t):
            a, z = t.chunk(2, -1)
            return t * cos + torch.cat([-z, a], -1) * sin
        q, k = rope(q), rope(k)
        rep = c.num_attention_heads // c.num_kv_heads
        k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def moe(self, x):
        """x: [tokens, hidden] -> output, router logits, chosen experts [tokens, 2]."""
        c = self.c
        logits = self.router(x)
        w, idx = logits.softmax(-1).topk(c.num_experts_per_tok, -1)
        w = w / (w.sum(-1, keepdim=True) + 1e-8)
        xhat = rms_unit(x, 1e-5)
        ws = [[t.unbind(0) for t in quant_weight(p, S.lam, c.weight_quant)] for p in (self.gate, self.up, self.down)]

        def run(e, xe):
            return EXPERT[0](xe, self.gate_norm[e], ws[0][0][e], ws[0][1][e], self.up_norm[e], ws[1][0][e], ws[1][1][e],
                             self.down_norm[e], ws[2][0][e], ws[2][1][e], S.lam, S.gemm)
        out = run(c.num_experts, xhat)
        for e in range(c.num_experts):
            tok, slot = (idx == e).nonzero(as_tuple=True)
            if len(tok):
                share, tok = padded(w[tok, slot]), padded(tok)
                out = out.index_add(0, tok, run(e, xhat[tok]) * share.unsqueeze(-1))
        return out.clamp(-1e4, 1e4), logits, idx


class EmberNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.vision = Vision(c)
        self.embed_tokens = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.06)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_layers))
        self.norm = RMSNorm(c.hidden_size, 1e-6)
        hd = c.hidden_size // c.num_attention_heads
        inv = 10000.0 ** (-torch.arange(0, hd, 2, dtype=torch.float64) / hd)
        a = torch.arange(c.max_position_embeddings, dtype=torch.float64)[:, None] * inv
        a = torch.cat([a, a], -1)
        self.register_buffer("cos", a.cos().float(), persistent=False)
        self.register_buffer("sin", a.sin().float(), persistent=False)

    def embed(self, ids, clamp=True):
        ids = ids.masked_fill(ids == self.c.image_token_id, self.c.pad_token_id)
        x = self.embed_tokens[ids.clamp(0, self.c.vocab_size - 1)]
        return x.clamp(-10, 10) if clamp else x

    def decode(self, x, pos, mask, valid=None, want=None):
        """x [B, L, D]; valid, want: flat indices of real tokens and of tokens whose logits are needed.
        Returns logits of the wanted tokens, and per layer (router logits, chosen experts, token indices)."""
        b, l, d = x.shape
        cos, sin = self.cos[pos][:, None], self.sin[pos][:, None]
        info = []
        for i, layer in enumerate(self.layers):
            x = x + layer.attention(x, cos, sin, mask)
            flat = x.reshape(b * l, d)
            sel = want if i == len(self.layers) - 1 else valid  # the last MoE matters only where logits are read
            n = b * l if sel is None else len(sel)
            part = flat if sel is None else flat[padded(sel)]
            out, logits, idx = layer.moe(layer.post_attention_layernorm(part))
            info.append((logits[:n], idx[:n], sel))
            if i == len(self.layers) - 1:
                x = (part + out)[:n]
            else:
                x = (flat + out if sel is None else flat.index_add(0, sel, out[:n])).view(b, l, d)
        return F.linear(self.norm(x), self.embed_tokens), info

    def prefill_inputs(self, image_embeds, ids):
        x = torch.cat([image_embeds.clamp(-10, 10), self.embed(ids)], 1)
        l = x.shape[1]
        return x, torch.arange(l)[None].expand(x.shape[0], -1), torch.ones(l, l, dtype=torch.bool).tril()[None, None]

    @torch.no_grad()
    def generate(self, image_embeds, ids, max_new=16):
        """Greedy, for a batch of prompts of equal length. Returns lists of ids (with the final eos)."""
        n, out, done = ids.shape[0], [[] for _ in range(ids.shape[0])], torch.zeros(ids.shape[0], dtype=torch.bool)
        p = ids.shape[1]
        for _ in range(max_new):
            x = torch.cat([image_embeds.clamp(-10, 10), self.embed(ids[:, :p]), self.embed(ids[:, p:], clamp=False)], 1)
            l = x.shape[1]
            want = torch.arange(n) * l + l - 1
            logits, _ = self.decode(x, torch.arange(l)[None].expand(n, -1), torch.ones(l, l, dtype=torch.bool).tril()[None, None], None, want)
            nxt = logits.argmax(-1)
            for i, t in enumerate(nxt.tolist()):
                if not done[i]:
                    out[i].append(t)
            done |= nxt == self.c.eos_token_id
            if done.all():
                break
            ids = torch.cat([ids, nxt[:, None]], 1)
        return out


@torch.no_grad()
def local_init(m, pixels, alpha=3.0):
    """Start the pooler and the projector so that image token i looks at image region i: the queries are
    set to the mean token of their region (over some images), query and key projections are equal, value
    and output projections orthogonal.  From a random start the attention is nearly uniform, hardly any
    image content reaches the decoder, and training stalls for a long time."""
    v, e = m.vision, m.c.hidden_size
    g, d = v.grid, v.position_embedding.shape[1]
    freq = 1.0 / 30 ** (torch.arange(d // 4) / (d // 4)) * 1.5
    y, x = torch.meshgrid(torch.arange(g), torch.arange(g), indexing="ij")
    ang = [t.flatten()[:, None] * freq for t in (y, x)]
    v.position_embedding.copy_(torch.cat([f(a) for a in ang for f in (torch.sin, torch.cos)], -1) * 0.7)

    # BitLinear normalises its input, so a sub-layer's output has the scale of its weights, whatever its
    # input: keep the outputs small beside the embeddings, or the first layers drown the tokens.
    for layer in m.layers:
        layer.o_proj.weight.mul_(0.5)
        layer.down.mul_(0.3)
    m.embed_tokens.mul_(5.0)      # 0.3
    m.norm.weight.fill_(0.25)     # tied head
    v.ln_ff.weight.fill_(5.0)     # image embeddings: 0.1 * 5
    v.ffn2.weight.mul_(0.2)
    v.patch_embedding.weight.mul_(2.0)
    v.patch_embedding.bias.copy_(-0.9 * v.patch_embedding.weight.sum((1, 2, 3)))  # paper white gives zero

    def local(attn, queries, keys):
        code = keys.mean(0)
        code = code - code.mean(0)
        queries.copy_(0.5 * (code / code.pow(2).mean().sqrt())[None])
        a = torch.randn(e, e) / math.sqrt(e) * alpha
        attn.in_proj_weight[:e], attn.in_proj_weight[e:2 * e] = a, a
        attn.in_proj_weight[2 * e:] = nn.init.orthogonal_(torch.empty(e, e))
        nn.init.orthogonal_(attn.out_proj.weight)
        nn.init.zeros_(attn.out_proj.bias)

    b = pixels.shape[0]
    x = pixels.reshape(b, 3, g, v.patch, g, v.patch).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, -1)
    x = linear(x, v.patch_embedding.weight.flatten(1), v.patch_embedding.bias) + v.position_embedding
    for layer in v.layers:
        x = layer(x)
    x = v.post_layernorm(x).reshape(b, g // 2, 2, g // 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, g * g // 4, -1)
    v.proj.weight.copy_(nn.init.orthogonal_(torch.empty_like(v.proj.weight)) * 2)
    v.proj.bias.copy_(-F.linear(v.pre_norm(x), v.proj.weight).mean((0, 1)))
    x = v.post_norm(v.proj(v.pre_norm(x)))
    if v.pool_queries.shape[1] != x.shape[1]:
        return
    local(v.pool_attn, v.pool_queries, x)
    x = v.vision_proj(v.pool_norm(v.pool_queries + v.pool_attn(v.pool_queries.expand(b, -1, -1), x)))
    for attn in v.cross:
        local(attn, v.query_tokens, x)


VISION_NAMES = {
    "patch_embedding.weight": "encoder.vision_model.embeddings.patch_embedding.weight",
    "patch_embedding.bias": "encoder.vision_model.embeddings.patch_embedding.bias",
    "position_embedding": "encoder.vision_model.embeddings.position_embedding.weight",
    "post_layernorm.": "encoder.vision_model.post_layernorm.",
    "layers.": "encoder.vision_model.encoder.layers.",
    "pre_norm.": "compressor.pre_norm.", "proj.": "compressor.proj.", "post_norm.": "compressor.post_norm.",
    "pool_queries": "pooler.queries", "pool_attn.": "pooler.attn.", "pool_norm.": "pooler.norm.",
    "query_tokens": "projector.query_tokens", "vision_proj.": "projector.vision_proj.",
    "cross.": "projector.cross_attn_layers.", "ffn0.": "projector.ffn.0.", "ffn2.": "projector.ffn.2.",
    "ln_q.": "projector.ln_q.", "ln_ff.": "projector.ln_ff.",
}


def checkpoint_names(model):
    """[(name in the checkpoint, own parameter name, index in the stack or None)]"""
    out = []
    for name, p in model.named_parameters():
        if name.startswith("vision."):
            rest = name[7:]
            key = max((k for k in VISION_NAMES if rest.startswith(k)), key=len)
            out.append(("vision_encoder." + VISION_NAMES[key] + rest[len(key):], name, None))
        elif name == "embed_tokens":
            out.append(("decoder.embed_tokens.weight", name, None))
        elif name == "norm.weight":
            out.append(("decoder.norm.weight", name, None))
        else:
            _, i, rest = name.split(".", 2)
            base = f"decoder.layers.{i}."
            kind = rest.split("_norm")[0]
            if kind in ("gate", "up", "down"):
                for e in range(p.shape[0]):
                    who = "shared_expert" if e == p.shape[0] - 1 else f"experts.{e}"
                    tail = "norm.weight" if rest.endswith("_norm") else "weight"
                    out.append((f"{base}moe.{who}.{kind}_proj.{tail}", name, e))
            elif rest.startswith("router"):
                out.append((base + "moe." + rest, name, None))
            elif rest[1:6] == "_proj":
                out.append((base + "attention." + rest, name, None))
            else:
                out.append((base + rest, name, None))
    return out


def to_checkpoint(model):
    p = dict(model.named_parameters())
    sd = {n: (p[own] if e is None else p[own][e]).detach().clone().contiguous() for n, own, e in checkpoint_names(model)}
    sd["image_newline"] = torch.zeros(model.c.hidden_size)
    return sd


def from_checkpoint(model, sd, strict=True):
    p = dict(model.named_parameters())
    with torch.no_grad():
        for n, own, e in checkpoint_names(model):
            if not strict and n not in sd:
                continue
            (p[own] if e is None else p[own][e]).copy_(sd[n].float())
    return model


def flat_config(c):
    return asdict(c)
