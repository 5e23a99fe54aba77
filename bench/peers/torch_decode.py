"""Decode attention of one KV head in torch bfloat16 on one thread: the peer of bench/decode_peer.ts.

Reads one shape a line, "dim group rows seconds", and answers with one line of JSON: the least milliseconds of a call
within the time, of scaled_dot_product_attention and of the two matrix products with a softmax between them.
pip install torch, in an environment outside the repository.
"""
import json
import sys
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(1)
tensors = {}


def inputs(dim, group, rows):
    """queries (1, group, 1, dim); keys and values (1, 1, rows, dim): made once for each shape."""
    key = (dim, group, rows)
    if key not in tensors:
        tensors.clear()
        make = lambda heads, count: torch.randn(1, heads, count, dim).to(torch.bfloat16)
        tensors[key] = make(group, 1), make(1, rows), make(1, rows)
    return tensors[key]


def fused(q, k, v):
    # The group's queries are the query rows of the one head.
    return torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k, v)


def products(q, k, v):
    q = q.transpose(1, 2)
    return torch.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5, 3) @ v


def least(call, seconds):
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best * 1000


print(json.dumps({"torch": torch.__version__}), flush=True)
with torch.inference_mode():
    for line in sys.stdin:
        dim, group, rows, seconds = line.split()
        q, k, v = inputs(int(dim), int(group), int(rows))
        assert torch.allclose(fused(q, k, v).float(), products(q, k, v).float(), atol=0.03)
        times = {name.__name__: least(lambda: name(q, k, v), float(seconds) / 2) for name in (fused, products)}
        print(json.dumps(times), flush=True)
