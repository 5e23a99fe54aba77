"""
Golden values of moved queries and of refits, in float64 with PyTorch: tests/data/golden/refit.safetensors.

    pip install torch==2.15.0 safetensors
    python tools/make_refit_golden.py

Moved: queries after RoPE (pairs "half", theta 10000) turned by the context's length, softmax over all keys, the largest
over the queries and the group. Refit (attention matching, arXiv 2602.16284): weights by projected gradient until nothing
moves any more, values by torch.linalg.solve. tests/core/refit_test.ts compares.
"""
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

HEADS, KV_HEADS, DIM, LENGTH = 4, 2, 8, 48
KEPT, RIDGE, LEAST = 14, 0.05, 1e-3
OUT = Path(__file__).parent.parent / "tests/data/golden/refit.safetensors"


def turned(x, positions):
    """Rotates the last dimension of x, (heads, rows, DIM), to later positions."""
    frequencies = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    angles = positions[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., : DIM // 2], x[..., DIM // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rounded(x):
    """What the tests read: float32 inputs, taken as exact."""
    return x.to(torch.float32).to(torch.float64)


def refit(keys, values, queries, outputs, lse, both):
    p = torch.exp(queries @ keys.T / math.sqrt(DIM) - lse[:, None])
    weights = torch.ones(len(keys), dtype=torch.float64)
    if both:
        gram = p.T @ p
        ridge = RIDGE * gram.diagonal().mean()
        gram = gram + ridge * torch.eye(len(keys), dtype=torch.float64)
        target = p.sum(0) + ridge
        weights = torch.linalg.solve(gram, target).clamp(min=LEAST)
        step = 1 / torch.linalg.eigvalsh(gram)[-1]
        for _ in range(200000):
            after = (weights - step * (gram @ weights - target)).clamp(min=LEAST)
            done = (after - weights).abs().max() < 1e-14
            weights = after
            if done:
                break
    x = torch.softmax(queries @ keys.T / math.sqrt(DIM) + weights.log(), dim=-1)
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean()
    new = torch.linalg.solve(gram + ridge * torch.eye(len(keys), dtype=torch.float64), x.T @ outputs + ridge * values)
    return weights.log(), new


def main():
    torch.manual_seed(16)
    queries = rounded(2 * torch.randn(HEADS, LENGTH, DIM, dtype=torch.float64))
    keys = rounded(2 * torch.randn(KV_HEADS, LENGTH, DIM, dtype=torch.float64))
    values = rounded(torch.randn(KV_HEADS, LENGTH, DIM, dtype=torch.float64))
    moved = turned(queries, torch.full((LENGTH,), float(LENGTH), dtype=torch.float64))
    tensors = {"queries": queries, "keys": keys, "values": values}
    group = HEADS // KV_HEADS
    shares = torch.softmax(moved @ keys.repeat_interleave(group, 0).transpose(1, 2) / math.sqrt(DIM), dim=-1)
    for every in (1, 3):
        rows = [t for t in range(LENGTH) if (LENGTH - 1 - t) % every == 0]
        tensors[f"moved{every}"] = shares[:, rows].amax(1).reshape(KV_HEADS, group, LENGTH).amax(1)
    # One KV head, refitted by the moved queries of its group, of which every third entry stays.
    kept = torch.arange(1, 1 + 3 * KEPT, 3)
    references = moved[:group].reshape(-1, DIM)
    logits = references @ keys[0].T / math.sqrt(DIM)
    outputs, lse = torch.softmax(logits, -1) @ values[0], torch.logsumexp(logits, -1)
    tensors |= {"references": references, "outputs": outputs, "log_sum_exp": lse}
    inputs = [rounded(x) for x in (references, outputs, lse)]
    for name, both in (("values", False), ("both", True)):
        bias, new = refit(keys[0][kept], values[0][kept], *inputs, both)
        tensors |= {f"{name}_bias": bias, f"{name}_values": new}
    save_file({name: x.to(torch.float32).contiguous() for name, x in tensors.items()}, OUT)


main()
