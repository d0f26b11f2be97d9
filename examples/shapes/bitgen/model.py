"""BitGen stage 1 with the lightweight vision encoder, with the original's tensor names: its `state_dict()` is a
checkpoint of that form.  In eval mode it computes what the original computes in eval mode; the memory is read without
noise.  In train mode the decoder's BitNet layers are quantised to the degree `lam` (the original's are not quantised at
all while it trains), with straight-through gradients.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Config:
    embed_dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    head_dim: int = 32
    ffn_dim: int = 256
    vocab_size: int = 912
    memory_size: int = 32
    memory_dim: int = 128
    vision_embed_dim: int = 128
    use_lightweight_vision: bool = True
    queue_size: int = 256
    temperature: float = 0.07
    max_seq_len: int = 32


class State:
    """lam: 0 = the decoder computes in full precision while training, 1 = quantised.  noise: of the memory."""
    lam, noise = 1.0, False


S = State()


class BitNetLinear(nn.Linear):
    def __init__(self, din, dout):
        super().__init__(din, dout)
        self.register_buffer("weight_scale", torch.ones(1))
        self.register_buffer("input_scale", torch.ones(1))

    def forward(self, x):
        w = self.weight
        d = w.detach()
        s = d.abs().mean().clamp_min(1e-5)
        t = torch.sign(d) * (d.abs() > 0.5 * s)
        # The original has one step for the whole input.  While training it is one for each sample, because captions
        # are made one at a time.
        top = x.detach().abs().amax(tuple(range(1, x.ndim)), keepdim=True) if self.training else x.detach().abs().max()
        a = top.clamp_min(1e-8) / 127
        n = (x / a).detach().round().clamp(-128, 127)
        if self.training:
            return F.linear(x + S.lam * (n * a - x).detach(), w + S.lam * (t * s - w).detach(), self.bias)
        return F.linear(n, t) * s * a + self.bias


def pooler(e):
    return nn.Sequential(nn.Linear(e, e), nn.Tanh())


class Fusion(nn.Module):
    """FIBER-style fusion, and the contrastive features."""

    def __init__(self, c):
        super().__init__()
        e, v = c.embed_dim, c.vision_embed_dim
        self.temperature = nn.Parameter(torch.tensor(c.temperature))
        self.register_buffer("image_queue", torch.zeros(e, c.queue_size))
        self.register_buffer("text_queue", torch.zeros(e, c.queue_size))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.vision_encoder = nn.Sequential(
            nn.Conv2d(3, 32, 7, 2, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(7))
        self.vision_to_embed = nn.Linear(128, v)
        self.cross_modal_text_transform, self.cross_modal_image_transform = nn.Linear(e, e), nn.Linear(v, e)
        self.cross_modal_text_transform_itc, self.cross_modal_image_transform_itc = nn.Linear(e, e), nn.Linear(v, e)
        self.cross_modal_text_pooler, self.cross_modal_image_pooler = pooler(e), pooler(e)
        self.cross_modal_text_pooler_itc, self.cross_modal_image_pooler_itc = pooler(e), pooler(e)
        self.fusion_mlp = nn.Sequential(nn.Linear(2 * e, 2 * e), nn.ReLU(), nn.Identity(), nn.Linear(2 * e, e))

    def vision(self, images):
        """images [B, 3, h, w] in 0..1 -> vision features [B, 49, V]."""
        mean, std = (torch.tensor(t).view(3, 1, 1) for t in (MEAN, STD))
        return self.vision_to_embed(self.vision_encoder((images - mean) / std).flatten(2).transpose(1, 2))

    def forward(self, x, seen):
        t = self.cross_modal_text_transform(x)
        i = self.cross_modal_image_transform(seen).mean(1, keepdim=True).expand_as(t)
        return self.fusion_mlp(torch.cat([t, i], -1))

    def text_feature(self, first):
        """first: token and position embedding of the first tokens [n, E]."""
        return F.normalize(self.cross_modal_text_pooler_itc(self.cross_modal_text_transform_itc(first)), dim=-1, eps=1e-8)

    def image_feature(self, seen):
        common = self.cross_modal_image_transform_itc(seen).mean(1)
        return F.normalize(self.cross_modal_image_pooler_itc(common), dim=-1, eps=1e-8)


class Gpm(nn.Module):
    def __init__(self, k, c):
        super().__init__()
        self.memory_mean = nn.Parameter(torch.randn(k, c) * 0.3)
        self.memory_logvar = nn.Parameter(torch.full((1,), -4.0), requires_grad=False)
        for n, start in (("read_count", 0.0), ("write_count", 0.0), ("quality", 1.0), ("age", 0.0)):
            self.register_buffer(f"memory_{n}", torch.full((k,), start))


class Memory(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gpm = Gpm(c.memory_size, c.memory_dim)
        self.input_proj, self.output_proj = nn.Linear(c.embed_dim, c.memory_dim), nn.Linear(c.memory_dim, c.embed_dim)
        self.layer_norm = nn.LayerNorm(c.embed_dim)

    def forward(self, x):
        q, m = self.input_proj(x), self.gpm.memory_mean
        if S.noise:
            m = m + torch.randn_like(m) * (self.gpm.memory_logvar / 2).exp()
        scores = F.normalize(q, dim=-1) @ F.normalize(m, dim=-1).T * self.gpm.memory_quality
        top, slots = scores.topk(5, -1)
        read = (top.softmax(-1).unsqueeze(-1) * m[slots]).sum(-2)
        return self.layer_norm(x + self.output_proj(q + 0.5 * read))


class DecoderAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, e = c.num_heads, c.embed_dim
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (BitNetLinear(e, e) for _ in range(4))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        e = c.embed_dim
        self.self_attn, self.encoder_proj = DecoderAttention(c), BitNetLinear(e, e)
        self.ffn = nn.Sequential(BitNetLinear(e, c.ffn_dim), nn.GELU(), nn.Identity(), BitNetLinear(c.ffn_dim, e))
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(e) for _ in range(3))  # ln2 is in the original, and unused there

    def forward(self, y, mean):
        y = y + self.self_attn(self.ln1(y))
        y = y + self.encoder_proj(mean.expand_as(y))
        return y + self.ffn(self.ln3(y))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.decoder_layers = nn.ModuleList(DecoderLayer(c) for _ in range(2))
        self.layer_norm = nn.LayerNorm(c.embed_dim)
        self.output_projection = BitNetLinear(c.embed_dim, c.vocab_size)

    def forward(self, y, embeddings):
        mean = embeddings.mean(1, keepdim=True)
        for layer in self.decoder_layers:
            y = layer(y, mean)
        return self.output_projection(self.layer_norm(y))


class BitGen(nn.Module):
    def __init__(self, c):
        super().__init__()
        e = c.embed_dim
        self.c = c
        self.token_embedding, self.pos_embedding = nn.Embedding(c.vocab_size, e), nn.Embedding(c.max_seq_len, e)
        nn.init.normal_(self.token_embedding.weight, std=0.3)
        nn.init.normal_(self.pos_embedding.weight, std=0.1)
        self.cross_modal_fusion, self.episodic_memory = Fusion(c), Memory(c)
        self.attention_layers = nn.ModuleList(
            nn.TransformerEncoderLayer(e, c.num_heads, c.ffn_dim, dropout=0.0, batch_first=True) for _ in range(c.num_layers))
        self.layer_norm, self.text_decoder = nn.LayerNorm(e), Decoder(c)

    def embed(self, ids):
        return self.token_embedding(ids) + self.pos_embedding.weight[:ids.shape[1]]

    def see(self, images):
        """images [B, 3, h, w] in 0..1 -> vision features [B, 49, V]."""
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.cross_modal_fusion.vision(images)

    def encode(self, ids, seen):
        """ids [B, L], vision features [B, patches, V] or None -> embeddings [B, L, E]."""
        x = self.embed(ids)
        if seen is not None:
            x = self.cross_modal_fusion(x, seen)
        x = self.episodic_memory(x)
        for layer in self.attention_layers:
            x = layer(x)
        return self.layer_norm(x)

    def text_features(self, ids):
        return self.cross_modal_fusion.text_feature(self.embed(ids)[:, 0])

    def image_features(self, seen):
        return self.cross_modal_fusion.image_feature(seen)

    def decode(self, target, embeddings):
        return self.text_decoder(self.embed(target), embeddings)

    @torch.no_grad()
    def greedy(self, ids, seen, longest, end=None):
        """One caption: ids [1, L], vision features [1, patches, V]; starts with the first id, everything is computed
        anew at each step.  Returns the ids (the start included, `end` not) and the last logits of every step."""
        embeddings, out, steps = self.encode(ids, seen), ids[:, :1], []
        for _ in range(longest):
            steps.append(self.decode(out, embeddings)[0, -1])
            new = steps[-1].argmax()
            if end is not None and new == end:
                break
            out = torch.cat([out, new.view(1, 1)], 1)
        return out, torch.stack(steps)
