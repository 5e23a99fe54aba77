"""Goldens of the stages behind a selection, from their published formulas in NumPy alone: tests/data/stages/*.json.

    python tools/make_stage_goldens.py
"""

import json
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent.parent / "tests" / "data" / "stages"


def listed(**arrays):
    return {name: np.asarray(a).tolist() for name, a in arrays.items()}


def merge():
    """Elastic Cache (arXiv 2407.18121): nearest anchor by position, shares by attention; the weight by its entropy."""
    rng = np.random.default_rng(7)
    rows, dim = 14, 4
    keys, values = rng.normal(size=(2, rows, dim)).astype(np.float32)
    positions = np.cumsum(rng.integers(1, 4, rows))
    masses = rng.random(rows) ** 2
    masses[-3:] = np.nan
    kept = np.array([0, 3, 4, 9, 11, 12])
    anchors = [r for r in kept if not np.isnan(masses[r])]
    groups = {r: [r] for r in anchors}
    for r in range(rows):
        if r not in kept and not np.isnan(masses[r]):
            groups[anchors[int(np.argmin([abs(positions[a] - positions[r]) for a in anchors]))]].append(r)
    k, v, bias = keys[kept].copy(), values[kept].copy(), np.zeros(len(kept))
    for at, r in enumerate(kept):
        group = groups.get(r, [r])
        if len(group) < 2:
            continue
        share = masses[group] / masses[group].sum()
        k[at], v[at] = share @ keys[group].astype(float), share @ values[group].astype(float)
        bias[at] = -(share * np.log(share)).sum()
    masses = [None if np.isnan(m) else m for m in masses.tolist()]
    return dict(masses=masses, dim=dim, **listed(keys=keys.ravel(), values=values.ravel(), positions=positions, kept=kept,
                mergedKeys=k.ravel(), mergedValues=v.ravel(), bias=bias))


def key_channels():
    """ThinK (arXiv 2407.21018): ||q_j k_j^T||_F per channel by the matrices themselves, largest kept."""
    rng = np.random.default_rng(11)
    group, window, rows, dim, kept = 3, 5, 9, 12, 8
    queries = rng.normal(size=(group, window, dim)).astype(np.float32) * rng.random(dim).astype(np.float32)
    keys = rng.normal(size=(rows, dim)).astype(np.float32) * rng.random(dim).astype(np.float32)
    scores = [np.linalg.norm(np.outer(queries[..., j].ravel().astype(float), keys[:, j])) for j in range(dim)]
    channels = np.sort(np.argsort(scores)[::-1][:kept])
    return dict(dim=dim, share=0.6, count=dim - int(dim * 0.4), kept=kept, **listed(queries=queries.ravel(), keys=keys.ravel(),
                channels=channels))


def chunks():
    """FASA (arXiv 2602.03152): contextual agreement of each frequency chunk, pairs (i, i + d/2), by sorted sets."""
    rng = np.random.default_rng(13)
    count, rows, dim, top = 4, 40, 8, 6
    queries, keys = rng.normal(size=(count, dim)).astype(np.float32), rng.normal(size=(rows, dim)).astype(np.float32)
    visible = [40, 33, 20, 12]
    agreement = np.zeros(dim // 2)
    for q, seen in zip(queries.astype(float), visible):
        best = lambda scores: set(np.argsort(-scores, kind="stable")[:top].tolist())
        whole = best(keys[:seen] @ q)
        for c in range(dim // 2):
            pair = [c, c + dim // 2]
            agreement[c] += len(whole & best(keys[:seen][:, pair] @ q[pair])) / top / count
    return dict(dim=dim, top=top, visible=visible, **listed(queries=queries.ravel(), keys=keys.ravel(), agreement=agreement))


if __name__ == "__main__":
    for make in [merge, key_channels, chunks]:
        (OUT / f"{make.__name__}.json").write_text(json.dumps(make()) + "\n")
