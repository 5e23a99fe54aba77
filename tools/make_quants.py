"""Writes tests/data/quants.json: for each tensor type random blocks and what PyPI gguf makes of them.

    pip install gguf==0.19.0 numpy==2.4.6   # in a virtual environment
    python tools/make_quants.py

Made with Python 3.11 and the versions above; the seed is fixed. Bytes and numbers are base64, numbers little-endian
float32 as `gguf.quants.dequantize` gives them.
"""

import base64
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
# Every type that palisade reads, with the places of its float16 fields. A new one goes to the end: what stands before it
# then stays as it is.
HALVES = {
    T.F32: [], T.F16: range(0, 64, 2), T.BF16: [], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q8_0: [0],
    T.Q4_K: [0, 2], T.Q6_K: [208],
    T.Q5_1: [0, 2], T.Q2_K: [80, 82], T.Q3_K: [108], T.Q5_K: [0, 2], T.IQ4_NL: [0], T.IQ4_XS: [0], T.MXFP4: [],
    T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ1_S: [0], T.IQ1_M: [],
    T.TQ1_0: [52], T.TQ2_0: [64],
}


def random_blocks(kind: T, rng: np.random.Generator) -> np.ndarray:
    """Random bytes in every field; the float16 fields any finite value, also subnormal, negative and zero."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (4 if block == 256 else 32, 32 * size if block == 1 else size), dtype=np.uint8)
    for at in HALVES[kind]:
        bits = rng.integers(0, 65536, len(blocks)).astype(np.uint16)
        bits[:4] = [0x0001, 0x83FF, 0x8000, 0x7BFF]
        bits[(bits & 0x7C00) == 0x7C00] &= 0x83FF
        blocks[:, at:at + 2] = bits.view(np.uint8).reshape(-1, 2)
    if kind in (T.F32, T.BF16):
        values = rng.standard_normal((32, 32)) * 10.0 ** rng.integers(-44, 38, (32, 32))
        return quantize(values.astype(np.float32), kind).view(np.uint8)
    return blocks


def main() -> None:
    rng = np.random.default_rng(100)
    document = {}
    for kind in HALVES:
        blocks = random_blocks(kind, rng)
        stored = {T.F32: np.float32, T.F16: np.float16}.get(kind)
        floats = blocks.view(stored).astype(np.float32) if stored else dequantize(blocks, kind)
        document[kind.name] = {
            "bytes": base64.b64encode(blocks.tobytes()).decode(),
            "floats": base64.b64encode(floats.astype("<f4").tobytes()).decode(),
        }
    (DATA / "quants.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
