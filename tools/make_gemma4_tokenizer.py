"""Writes tests/data/gemma4_tokenizer.json.gz: a small vocabulary of Gemma 4's kind, and what `tokenizers` makes of texts.

    pip install tokenizers==0.23.3   # in a virtual environment
    python tools/make_gemma4_tokenizer.py

`tokens`, `merges`: pieces over characters, a space written as U+2581, bytes as <0xXX>; `cases`: text and ids; `ids`: those
of the texts in tests/data/tokenizers.json.gz.
"""

import gzip
import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, trainers

CORPUS = [
    "The wall is made of stakes, set close together in the ground. The stakes keep the cattle in and the wolves out.",
    "What is kept is kept in order; what is lost is counted.\n\nThere were 17 gates in 1843,  and in the end 3.\n",
    "Who keeps the keys of the gate? The keeper's daughter does: she's the one they'll ask when    the night is over.",
    "Die Hüterin zählt die Pfähle; die Wölfe bleiben draußen. Le gardien garde la clé.\n\n\n守る人は門の鍵を持つ。",
]
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def main() -> None:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS + BYTES, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    # as plain vocabulary entries, so that a text that spells a byte's name doesn't become the byte
    model = models.BPE(trained["vocab"], [tuple(m) for m in trained["merges"]], byte_fallback=True,
                       unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    rng = random.Random(5)
    pieces = [word for text in CORPUS for word in text.split(" ")]
    odd = ["\n", "\n\n", "  ", "\t", "😀", "é", "e\u0301", "ß", "\u2581", "鍵", "ع", "\u0000", "1843", "'ll"]
    texts = ["".join(rng.choice([rng.choice(pieces), " ", rng.choice(odd)]) for _ in range(rng.randint(1, 12)))
             for _ in range(400)]
    tokens = [None] * len(trained["vocab"])
    for token, index in trained["vocab"].items():
        tokens[index] = token
    data = Path(__file__).resolve().parent.parent / "tests" / "data"
    others = json.loads(gzip.decompress((data / "tokenizers.json.gz").read_bytes()))["texts"]
    document = {
        "tokens": tokens,
        "merges": [" ".join(merge) for merge in trained["merges"]],
        "cases": [[text, tokenizer.encode(text).ids] for text in texts],
        "ids": [tokenizer.encode(text).ids for text in others],
    }
    path = data / "gemma4_tokenizer.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document, separators=(",", ":")).encode(), mtime=0))
    print(path.name, path.stat().st_size, len(tokens), len(document["merges"]))


if __name__ == "__main__":
    main()
