"""Scores of neighbours' policies on the tiny dumps, from their published formulas in NumPy alone:
tests/data/golden/neighbours-L97.safetensors.

    python tools/make_policy_goldens.py

Every pair of entries is looked at, every matrix inverted: the obvious forms, in doubles.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent.parent / "tests" / "data" / "golden"
LENGTH, HEADS, KV_HEADS, DIM = 97, 6, 2, 8
GROUP = HEADS // KV_HEADS
FREQUENCIES = np.array([1, 0.1, 0.01, 0.001])
SINKS = 4


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def causal_rows(q, k, window):
    """[heads, window, L]: softmax of the last queries over what they see."""
    logits = np.einsum("hqd,hkd->hqk", q[:, -window:], np.repeat(k, GROUP, 0)) / np.sqrt(DIM)
    for t in range(window):
        logits[:, t, LENGTH - window + t + 1:] = -np.inf
    return softmax(logits)


def pooled(rows, kernel, how):
    reach = kernel // 2
    out = np.zeros_like(rows)
    for i in range(rows.shape[-1]):
        around = rows[..., max(0, i - reach): i + reach + 1]
        out[..., i] = around.max(-1) if how == "max" else around.sum(-1) / kernel
    return out


def dropkv(q, k, v, window=32, kernel=7):
    p, values = causal_rows(q, k, window), np.repeat(v, GROUP, 0)
    scores = np.zeros((HEADS, LENGTH))
    for h in range(HEADS):
        for t in range(window):
            o = p[h, t] @ values[h]
            weight = (p[h, t] / (1 - p[h, t] + 1e-6)) ** 2
            scores[h] += weight * ((values[h] - o) ** 2).sum(-1)
    return pooled(scores[:, : LENGTH - window].reshape(KV_HEADS, GROUP, -1).mean(1), kernel, "mean")


def rkv(q, k, window=8, kernel=7, mix=0.07, alike=0.5):
    mean = causal_rows(q, k, window).reshape(KV_HEADS, GROUP, window, LENGTH)[..., : LENGTH - window].mean((1, 2))
    unit = k / (np.linalg.norm(k, axis=-1, keepdims=True) + 1e-8)
    redundancy = np.zeros((KV_HEADS, LENGTH))
    for g in range(KV_HEADS):
        cosines = unit[g] @ unit[g].T
        np.fill_diagonal(cosines, 0)
        for i in range(LENGTH):
            similar = np.flatnonzero(cosines[i] > alike)
            cosines[i, similar.max() if len(similar) else 0] = 0
        redundancy[g] = softmax(cosines.mean(0))
    return mix * pooled(mean, kernel, "max") - (1 - mix) * redundancy[:, : LENGTH - window]


def future_statistics(raw, future=512):
    """Mean and covariance of queries before RoPE, [heads, L, dim], turned by the mean rotation to come."""
    angles = np.arange(LENGTH, LENGTH + future)[:, None] * FREQUENCIES
    cos, sin = np.cos(angles).mean(0), np.sin(angles).mean(0)
    turn, half = np.zeros((DIM, DIM)), DIM // 2
    for j in range(half):
        turn[j, j] = turn[j + half, j + half] = cos[j]
        turn[j, j + half], turn[j + half, j] = -sin[j], sin[j]
    counted = raw[:, SINKS:]
    mean = counted.mean(1)
    off = counted - mean[:, None]
    covariance = np.einsum("hta,htb->hab", off, off) / counted.shape[1]
    return mean @ turn.T, np.einsum("ac,hcd,bd->hab", turn, covariance, turn)


def expected_attention(mean, covariance, k, v):
    scores = np.zeros((HEADS, LENGTH - SINKS))
    for h in range(HEADS):
        keys = k[h // GROUP, SINKS:]
        scores[h] = softmax(keys @ mean[h] / np.sqrt(DIM) + np.einsum("ta,ab,tb->t", keys, covariance[h], keys) / 2 / DIM)
    return scores.reshape(KV_HEADS, GROUP, -1).mean(1) * np.linalg.norm(v[:, SINKS:], axis=-1)


def capkv(raw, k, v, tau=5):
    mean, _ = future_statistics(raw)
    scores = np.zeros((HEADS, LENGTH - SINKS))
    for h in range(HEADS):
        keys, values = k[h // GROUP, SINKS:], v[h // GROUP, SINKS:]
        cosine = keys @ mean[h] / np.linalg.norm(keys, axis=-1) / np.linalg.norm(mean[h])
        weight = np.exp(tau * (cosine - cosine.max()))
        matrix = np.eye(DIM) + (values * (weight + 1e-6)[:, None]).T @ values
        scores[h] = weight * np.einsum("ta,ab,tb->t", values, np.linalg.inv(matrix), values)
    return scores.reshape(KV_HEADS, GROUP, -1).mean(1)


def qfilter(mean, covariance, k):
    scores = np.zeros((KV_HEADS, LENGTH))
    for h in range(HEADS):
        # The right singular vectors of queries are the eigenvectors of their second moments.
        _, vectors = np.linalg.eigh(covariance[h] + np.outer(mean[h], mean[h]))
        first = vectors[:, -1] * np.sign(vectors[:, -1] @ mean[h])
        scores[h // GROUP] += k[h // GROUP] @ first / GROUP
    return scores


def triattention(mean, lengths, k, future=65536):
    """Every distance by itself, keys turned back: mean and lengths of queries before RoPE, [heads, dim], [heads, pairs]."""
    half, turn = DIM // 2, np.exp(-1j * np.arange(LENGTH)[:, None] * FREQUENCIES)
    keys = (k[..., :half] + 1j * k[..., half:]) * turn
    distances = 2.0 ** np.arange(int(np.log2(future)) + 1)
    scores = np.full((KV_HEADS, LENGTH), -np.inf)
    for h in range(HEADS):
        center, key = mean[h, :half] + 1j * mean[h, half:], keys[h // GROUP]
        away = LENGTH - np.arange(LENGTH)[:, None, None] + distances[:, None]
        phase = FREQUENCIES * away + np.angle(center * key.conj())[:, None]
        along = np.abs(center) * np.cos(phase).mean(1)
        score = (np.abs(key) * (along + lengths[h] - np.abs(center))).sum(-1)
        scores[h // GROUP] = np.maximum(scores[h // GROUP], score)
    return scores


def pair_means(raw):
    counted, half = raw[:, SINKS:], DIM // 2
    return counted.mean(1), np.hypot(counted[..., :half], counted[..., half:]).mean(1)


if __name__ == "__main__":
    dump = {name: array.astype(np.float64) for name, array in load_file(GOLDEN / "tiny-L97.safetensors").items()}
    scores, raws = {}, []
    for layer in range(3):
        q, k, v, hidden, wq = (dump[f"layers/{layer}/{name}"] for name in ["q", "k", "v", "hidden", "wq"])
        raw = (hidden @ wq.T).reshape(LENGTH, HEADS, DIM).transpose(1, 0, 2)
        # Queries are what the dump says, turned: else all below would be of another model.
        half, angles = DIM // 2, np.arange(LENGTH)[:, None] * FREQUENCIES
        x, y = raw[..., :half], raw[..., half:]
        turned = np.concatenate([x * np.cos(angles) - y * np.sin(angles), y * np.cos(angles) + x * np.sin(angles)], -1)
        assert np.abs(turned - q).max() < 1e-4, np.abs(turned - q).max()
        each = {"dropkv": dropkv(q, k, v), "rkv": rkv(q, k), "capkv": capkv(raw, k, v), "qfilter": qfilter(*future_statistics(raw), k)}
        each["triattention"] = triattention(*pair_means(raw), k)
        # As if the first layer's queries were those that were calibrated on.
        raws.append(raw)
        each["expected-attention, calibrated"] = expected_attention(*future_statistics(raws[0]), k, v)
        each["qfilter, calibrated"] = qfilter(*future_statistics(raws[0]), k)
        each["triattention, calibrated"] = triattention(*pair_means(raws[0]), k)
        scores |= {f"{name}/{layer}": array.astype(np.float32) for name, array in each.items()}
    save_file(scores, GOLDEN / "neighbours-L97.safetensors")
