"""Muon for weight matrices, AdamW for everything else; the worker processes and their common gradient."""
import os

import torch
import torch.distributed as dist


@torch.no_grad()
def orthogonal(g, steps=5):
    """The nearest half-orthogonal matrix to each matrix of g [n, rows, columns], rows <= columns, by the quintic
    Newton-Schulz iteration of Muon (K. Jordan et al., 2024), in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.float()


class Muon:
    """Momentum, made orthogonal, for matrices and stacks of matrices.  Matrices of one shape (either way up)
    go through the iteration together; the workers share them out."""

    def __init__(self, params, momentum=0.95):
        self.params, self.momentum = params, momentum
        self.velocity = [torch.zeros_like(p) for p in params]
        shapes = {}
        for k, p in enumerate(params):
            shapes.setdefault(tuple(sorted(p.shape[-2:])), []).append(k)
        self.groups = list(shapes.values())
        self.flat = torch.empty(sum(p.numel() for p in params))

    def updates(self, rank, workers):
        """The new direction of every parameter, as views of one buffer."""
        out, n = [], 0
        for p, v in zip(self.params, self.velocity):
            v.lerp_(p.grad, 1 - self.momentum)
            out.append(self.flat[n:n + p.numel()].view_as(p))
            n += p.numel()
        self.flat.zero_()
        for group in self.groups:
            mine = group[rank::workers]
            if mine:
                upright = [p.shape[-2] <= p.shape[-1] for p in (self.params[k] for k in mine)]
                g = [self.params[k].grad.lerp(self.velocity[k], self.momentum) for k in mine]
                g = [x if up else x.mT for x, up in zip(g, upright)]
                u = orthogonal(torch.cat([x.reshape(-1, *x.shape[-2:]) for x in g]))
                for k, x, up, part in zip(mine, g, upright, u.split([x.numel() // (x.shape[-2] * x.shape[-1]) for x in g])):
                    part = part.reshape(x.shape)
                    out[k].copy_(part if up else part.mT)
        if workers > 1:
            dist.all_reduce(self.flat)
        return out


class Optimiser:
    """Matrices (also stacks of them) take orthogonalised momentum scaled to AdamW's usual step size
    (0.2 * sqrt(longest side)), so that one learning rate serves both groups."""

    def __init__(self, named, lr, decay, workers=1, rank=0, muon=True):
        skip = ("norm", "embed", "quer", "bias", "head", "router", "position")
        named = list(named)
        heavy = [(n, p) for n, p in named if p.dim() > 1 and not any(s in n for s in skip)]
        matrices = [p for n, p in heavy if p.dim() < 4] if muon else []
        own = {id(p) for p in matrices}
        rest = [(n, p) for n, p in named if id(p) not in own]
        kept = {id(p) for _, p in heavy}
        self.params = [p for _, p in named]
        self.lr, self.decay, self.rank, self.workers = lr, decay, rank, workers
        self.muon = Muon(matrices) if matrices else None
        self.adam = torch.optim.AdamW([
            {"params": [p for _, p in rest if id(p) in kept], "weight_decay": decay},
            {"params": [p for _, p in rest if id(p) not in kept], "weight_decay": 0.0},
        ], lr=lr, betas=(0.9, 0.98), eps=1e-9, fused=True)
        self.flat = torch.empty(sum(p.numel() for p in self.params))

    def average(self):
        """Average the gradients of all workers, and cap their norm at 1."""
        n = 0
        for p in self.params:
            part = self.flat[n:n + p.numel()]
            part.zero_() if p.grad is None else part.copy_(p.grad.flatten())
            n += p.numel()
        if self.workers > 1:
            dist.all_reduce(self.flat)
            self.flat /= self.workers
        self.flat *= min(1.0, 1.0 / (self.flat.norm().item() + 1e-6))
        n = 0
        for p in self.params:
            p.grad = self.flat[n:n + p.numel()].view_as(p)
            n += p.numel()

    @torch.no_grad()
    def step(self, factor):
        """One step with the learning rate times `factor`."""
        lr = self.lr * factor
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        if self.muon:
            for p, u in zip(self.muon.params, self.muon.updates(self.rank, self.workers)):
                p.mul_(1 - lr * self.decay).add_(u, alpha=-lr * 0.2 * max(p.shape[-2:]) ** 0.5)

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def state(self):
        return {"adam": self.adam.state_dict(), "velocity": self.muon.velocity if self.muon else []}

    def load(self, state):
        self.adam.load_state_dict(state["adam"])
        for v, saved in zip(self.muon.velocity if self.muon else [], state["velocity"]):
            v.copy_(saved)


def trapezoid(step, steps, warmup, tail):
    """Learning-rate factor: linear warm-up, flat, linear fall over the last `tail` of the steps."""
    return min(1.0, (step + 1) / warmup, max(0.01, (1 - step / steps) / tail))


def join(rank, a):
    """Makes this process worker `rank` of `a.workers`."""
    torch.set_num_threads(1)
    if a.workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{a.out}/rendezvous", rank=rank, world_size=a.workers)
    torch.manual_seed(a.seed)


def launch(worker, a):
    """Run the workers; a process each, since two of one thread use two cores better than one of two."""
    a.out = os.path.abspath(a.out)
    os.makedirs(a.out, exist_ok=True)
    if os.path.exists(f"{a.out}/rendezvous"):
        os.remove(f"{a.out}/rendezvous")
    if a.workers == 1:
        worker(0, a)
    else:
        torch.multiprocessing.spawn(worker, (a,), nprocs=a.workers)
