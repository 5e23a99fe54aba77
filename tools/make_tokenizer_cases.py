"""Writes tests/data/tokenizers.json.gz: small tokenizers, and what the reference libraries make of 2,000 texts.

    pip install sentencepiece==0.2.3 tokenizers==0.23.3
    python3 tools/make_tokenizer_cases.py

Byte-level BPE (`tokenizers`), one for each way of cutting text into words that GGUF names in `tokenizer.ggml.pre`, with
the expression of the models' own tokenizer.json. SentencePiece (`sentencepiece`), two models, trained on the demo's chapters and on lines in other scripts: `llama` as Llama 2 has it (a space in front,
byte fallback), `gemma` as Gemma has it (no space in front, runs of spaces and line breaks as pieces of their own).
Everything is drawn from one seed.
"""
import gzip
import io
import json
import random
from pathlib import Path

import sentencepiece as spm
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers
from sentencepiece import sentencepiece_model_pb2 as pb

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [p.read_text("utf8") for p in sorted((ROOT / "cli/commands/demo_texts").glob("*.txt"))]
LINES = [line.strip() for text in CHAPTERS for line in text.split("\n") if line.strip()]
OTHER = [
    "日本語の文章は空白なしで続きます。",
    "中文文本没有空格，标点也不同。",
    "한국어 문장은 띄어쓰기가 있습니다.",
    "هذا نص عربي مع تشكيلٍ قليل",
    "עברית נכתבת מימין לשמאל",
    "Русский текст с ёлками и числами 123",
    "हिन्दी में संयुक्त अक्षर होते हैं",
    "Zażółć gęślą jaźń, côté forêt, naïve, Ærøskøbing",
    "e\u0301 a\u0308 n\u0303 combining marks \u0301\u0301\u0301",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇳🇱 👍🏽 emoji 🫠",
    "def f(x):\n    return x**2  # comment\n\tif (a<b && c>d) { arr[i] = '\\n'; }",
    '{"key": [1, 2.5e-3, null], "s": "\\u00e9"}',
    "<html><p class=\"x\">text</p></html>",
    "\u0000\u0001\u0007\u001b[31mcontrol\u007f\u0085\u200b\u2028\ufeff",
    "a" * 60 + " " + "ab" * 40,
    "1234567890 3.14159 1,000,000 0x7fffffff",
    "ﬁ ligature ① ½ ㎏ ｆｕｌｌｗｉｄｔｈ",
    "\ud7ff\ue000\uffff \U0001f9ff \U000e0041 \U0010ffff",
]


def texts(rng: random.Random) -> list[str]:
    out = ["", " ", "  ", "\n", "\n\n\n", "\t", "   x", "x   ", " x y  z ", "\u2581", "a\u2581b", "<0x41>", "<s>", "</s>", "<unk>"]
    pool = LINES + OTHER * 20
    while len(out) < 2000:
        kind = rng.randrange(6)
        if kind < 3:
            text = rng.choice(pool)
            start = rng.randrange(max(1, len(text) - 10))
            text = text[start : start + rng.randrange(1, 70)]
        elif kind == 3:
            text = " ".join(rng.choice(rng.choice(pool).split(" ")) for _ in range(rng.randrange(1, 8)))
        elif kind == 4:
            text = (" " * rng.randrange(0, 40)).join(rng.choice(rng.choice(pool).split(" ")) for _ in range(3))
        else:
            # Surrogates are no text in UTF-8.
            points = [rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x370, 0xD800), rng.randrange(0xE000, 0x1FFFF)]) for _ in range(8)]
            text = "".join(map(chr, points)) + "\n" * rng.randrange(4) + rng.choice(pool)[:20]
        out.append(text)
    return out


def train(name: str, **options) -> spm.SentencePieceProcessor:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES + OTHER * 3),
        model_writer=model,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cl100k(digits: str) -> str:
    """Llama 3, Qwen 2."""
    return CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL


def o200k(contractions: str, digits: str) -> str:
    """GPT-4o, and Mistral's tekken."""
    head = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{head}{UPPER}*{LOWER}+{contractions}|{head}{UPPER}+{LOWER}*{contractions}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL
    )


# By the name in `tokenizer.ggml.pre`: expressions, whether text is normalised to NFC, whether a whole word that is a
# token is taken as it is.
PRE_TOKENIZERS = {
    "gpt-2": ([GPT2], False, False),
    "smollm": ([r"\p{N}", GPT2], False, False),
    "refact": ([r"\p{N}", GPT2], False, False),
    "qwen2": ([cl100k(r"\p{N}")], True, False),
    "llama-bpe": ([cl100k(r"\p{N}{1,3}")], False, True),
    "smaug-bpe": ([cl100k(r"\p{N}{1,3}")], False, False),
    "dbrx": ([cl100k(r"\p{N}{1,3}")], False, False),
    "lfm2": ([cl100k(r"\p{N}{1,3}")], False, True),
    "gpt-4o": ([o200k(CONTRACTIONS + "?", r"\p{N}{1,3}")], False, False),
    "tekken": ([o200k("", r"\p{N}")], False, True),
}


def train_bpe(patterns: list[str], nfc: bool, whole_words: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=whole_words))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES + OTHER * 3, trainer)
    return tokenizer


def bpe_case(name: str, all_texts: list[str]) -> dict:
    tokenizer = train_bpe(*PRE_TOKENIZERS[name])
    vocab = tokenizer.get_vocab()
    model = json.loads(tokenizer.to_str())["model"]
    return {
        "tokens": sorted(vocab, key=vocab.get),
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        "ids": [tokenizer.encode(text, add_special_tokens=False).ids for text in all_texts],
    }


def main() -> None:
    rng = random.Random(20261126)
    all_texts = texts(rng)
    cases = {"texts": all_texts, "bpe": {name: bpe_case(name, all_texts) for name in PRE_TOKENIZERS}, "sentencepiece": {}}
    sentencepiece_models = {
        "llama": train("llama", vocab_size=1400, add_dummy_prefix=True),
        "gemma": train(
            "gemma",
            vocab_size=1500,
            add_dummy_prefix=False,
            user_defined_symbols=["\n" * n for n in range(1, 6)] + ["\u2581" * n for n in range(2, 12)] + ["<table>"],
        ),
    }
    for name, proto in sentencepiece_models.items():
        parsed = pb.ModelProto.FromString(proto)
        # A few pieces that may be joined through and are not given out.
        if name == "gemma":
            for piece in [p for p in parsed.pieces if p.type == 1 and len(p.piece) in (2, 3)][40:80]:
                piece.type = 5
        processor = spm.SentencePieceProcessor(model_proto=parsed.SerializeToString())
        pieces = parsed.pieces
        cases["sentencepiece"][name] = {
            # GGUF stores user-defined spaces as spaces.
            "tokens": [p.piece.replace("\u2581", " ") if p.type == 4 else p.piece for p in pieces],
            "scores": [p.score for p in pieces],
            "types": [p.type for p in pieces],
            "spacePrefix": name == "llama",
            "ids": [processor.encode(text) for text in all_texts],
        }
    text = json.dumps(cases, ensure_ascii=True, separators=(",", ":"))
    target = ROOT / "tests/data/tokenizers.json.gz"
    target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(all_texts)} texts, {target.stat().st_size} bytes")


main()
