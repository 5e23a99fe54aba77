"""Writes the small random models that the tests of model/ read.

    pip install torch==2.15.0 gguf==0.19.0 transformers==5.23.0 numpy==2.4.6   # in a virtual environment
    python tools/make_tiny_models.py [NAME ...]     # these models only; default all

Made with Python 3.11 and the versions above (tokenizers 0.23.3), on CPU, seeds fixed. Result, all under tests/data/:

models/NAME.gguf         a llama or qwen2 GGUF with random weights and a byte-level BPE tokenizer with chat template
models/NAME.logits.json  `text`, its token `ids` (by `tokenizers`), and `logits[i]` (float32) after token `positions[i]`
                         by `transformers` (eager attention, float32) on the dequantised weights

Together the files hold the common tensor types and every RoPE variant; `MODELS` says which has which. Blocks of every
tensor type: make_quants.py.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM, Gemma3TextConfig, Gemma4ForCausalLM, Gemma4TextConfig, GptOssConfig, GptOssForCausalLM, Lfm2Config, Lfm2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM, Ministral3Config, Ministral3ForCausalLM,
    Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, SmolLM3Config,
    SmolLM3ForCausalLM,
)

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
VOCABULARY = 320
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The wall is made of stakes, set close together in the ground. The stakes keep the cattle in and the wolves out.",
    "What is kept is kept in order; what is lost is counted. There were 17 gates in 1843, and in the end there were 3.",
    "Who keeps the keys of the gate? The keeper's daughter does: she's the one they'll ask when the night is over.",
]
# 96 tokens and more
LONG_TEXT = " ".join(CORPUS[::-1])
TEXT = "The keeper counted 17 stakes; she'll keep the gate.\n\nWhat is lost?"
# the pattern of Qwen2's pre-tokenizer, as in its published tokenizer.json
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# the pattern of Mistral's tekken
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass
class Model:
    name: str
    architecture: str
    pre: str
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    tied: bool
    # by the end of a tensor's name, first match wins; "" is the rest
    types: dict[str, T]
    rope: dict = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    context: int = 4096
    layers: int = 2
    alignment: int | None = None
    # LONG_TEXT instead of TEXT
    long: bool = False
    # more of the configuration of transformers
    more: dict = field(default_factory=dict)


MODELS = [
    Model("llama-plain", "llama", "smollm", 64, 4, 2, 16, 96, True,
          {"attn_q": T.Q4_0, "attn_k": T.Q5_0, "attn_v": T.Q8_0, "ffn_down": T.Q4_1, "token_embd": T.Q8_0, "": T.Q4_1}),
    Model("llama-linear", "llama", "gpt-2", 32, 2, 2, 16, 64, False,
          {"attn_q": T.F16, "attn_k": T.BF16, "output": T.F16, "token_embd": T.BF16, "": T.F16},
          {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, alignment=64),
    Model("llama-yarn", "llama", "smollm", 32, 4, 1, 8, 64, True,
          {"attn_q": T.F32, "ffn_down": T.Q5_0, "": T.Q8_0},
          {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 512}, 2048),
    # widths of 256 for the K-quants, and heads narrower than width / heads
    Model("llama3-factors", "llama", "gpt-2", 256, 2, 1, 32, 256, True,
          {"attn_output": T.Q8_0, "attn_v": T.Q6_K, "ffn_down": T.Q6_K, "": T.Q4_K},
          {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 512, "rope_theta": 10000.0}, layers=1),
    Model("qwen2-plain", "qwen2", "qwen2", 64, 4, 2, 16, 96, True,
          {"attn_q": T.Q8_0, "attn_output": T.Q5_0, "token_embd": T.Q8_0, "": T.Q4_0},
          {"rope_type": "default", "rope_theta": 1000000.0}),
    Model("qwen2-yarn", "qwen2", "qwen2", 32, 2, 1, 16, 64, False,
          {"attn_k": T.F16, "token_embd": T.Q4_1, "": T.Q8_0},
          {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 512}, 2048),
    # heads wider than width / heads
    Model("qwen3-plain", "qwen3", "qwen2", 64, 4, 2, 32, 96, True,
          {"attn_q": T.Q8_0, "attn_k": T.Q4_1, "token_embd": T.Q8_0, "": T.Q4_0},
          {"rope_type": "default", "rope_theta": 1000000.0}, long=True),
    Model("granite-plain", "granite", "refact", 64, 4, 2, 16, 96, True, {"ffn_up": T.Q5_0, "": T.Q8_0},
          {"rope_type": "default", "rope_theta": 10000.0}, long=True,
          more={"embedding_multiplier": 3.0, "residual_multiplier": 0.22, "attention_multiplier": 0.5,
                "logits_scaling": 4.0}),
    # half of each head is rotated; 96 tokens are more than the original context
    Model("phi3-long", "phi3", "gpt-2", 64, 4, 2, 16, 96, False, {"attn_qkv": T.Q5_0, "ffn_up": T.Q4_0, "": T.Q8_0},
          {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
           "short_factor": [1.0, 1.1, 1.2, 1.4],
           "long_factor": [1.0, 1.5, 4.0, 12.0], "original_max_position_embeddings": 64},
          1024, long=True),
    # five layers, of which the fourth turns nothing
    Model("smollm3-plain", "smollm3", "smollm", 32, 2, 1, 16, 64, True, {"ffn_down": T.Q4_1, "": T.Q8_0},
          {"rope_type": "default", "rope_theta": 10000.0}, layers=5, long=True),
    # three steps of growing queries in 143 tokens
    Model("mistral3-yarn", "mistral3", "tekken", 64, 4, 2, 32, 96, False, {"attn_v": T.Q5_0, "": T.Q8_0},
          {"rope_type": "yarn", "factor": 16.0, "rope_theta": 10000.0, "original_max_position_embeddings": 48,
           "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.3},
          768, long=True),
    # the sixth of seven layers looks at everything, the others back over 24 tokens
    Model("gemma3-windows", "gemma3", "gpt-2", 32, 2, 1, 32, 64, True, {"ffn_up": T.Q5_0, "": T.Q8_0},
          {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}, layers=7, long=True,
          more={"sliding_window": 24, "query_pre_attn_scalar": 32}),
    # biases on all of attention
    Model("llama-biases", "llama", "smollm", 32, 4, 2, 8, 64, True, {"attn_k": T.Q4_1, "": T.Q8_0}, long=True,
          more={"attention_bias": True}),
    # five experts, of which a token goes to two
    Model("qwen3moe-plain", "qwen3moe", "qwen2", 64, 4, 2, 16, 96, False,
          {"ffn_gate_inp": T.F32, "ffn_down_exps": T.Q4_1, "ffn_up_exps": T.Q5_0, "": T.Q8_0},
          {"rope_type": "default", "rope_theta": 1000000.0}, long=True,
          more={"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}),
    # types that are held as another
    Model("llama-iq", "llama", "smollm", 256, 2, 1, 32, 256, False,
          {"attn_q": T.IQ2_XXS, "attn_k": T.IQ2_XS, "attn_v": T.IQ2_S, "attn_output": T.Q8_0, "ffn_gate": T.IQ3_XXS,
           "ffn_up": T.IQ3_S, "ffn_down": T.TQ1_0, "output": T.TQ2_0, "token_embd": T.IQ1_S}, layers=1, long=True),
    # layers look back 24 tokens and at everything in turn; logits for nothing; gates and ups beyond their limits
    Model("gpt-oss-plain", "gpt-oss", "gpt-4o", 64, 4, 2, 32, 32, False,
          {"ffn_gate_inp": T.F32, "_exps": T.MXFP4, "": T.Q8_0},
          {"rope_type": "yarn", "factor": 32.0, "rope_theta": 150000.0, "original_max_position_embeddings": 128,
           "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}, 4096, layers=3, long=True,
          more={"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "sliding_window": 24}),
    # the third and the fifth of five layers attend, the others convolve
    Model("lfm2-plain", "lfm2", "lfm2", 64, 4, 1, 16, 96, True, {"in_proj": T.Q5_0, "ffn_down": T.Q4_1, "": T.Q8_0},
          {"rope_type": "default", "rope_theta": 1000000.0}, layers=5, long=True,
          more={"layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"], "conv_L_cache": 3}),
    # layers look back 24 tokens or at everything, in heads of two widths; the last three look at rows of earlier ones
    Model("gemma4-shared", "gemma4", "gpt-2", 32, 4, 1, 32, 32, True, {"ffn_up": T.Q5_0, "proj": T.Q8_0, "": T.Q8_0},
          {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25}, layers=7, long=True,
          more={"layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, SLIDING, FULL], "sliding_window": 24,
                "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 32,
                "final_logit_softcapping": 3.0}),
    # values are what keys are before their norm, in fewer KV heads than window layers have; no layer has embeddings of its own
    Model("gemma4-keys", "gemma4", "gpt-2", 32, 4, 2, 32, 64, True, {"ffn_up": T.Q5_0, "": T.Q8_0},
          {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5}, layers=3, long=True,
          more={"layer_types": [SLIDING, SLIDING, FULL], "sliding_window": 24, "num_kv_shared_layers": 0,
                "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}),
]
# the pattern of o200k
O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# their files have the pairs of q and k rows side by side
INTERLEAVED = ("llama", "granite", "smollm3", "mistral3")


def make_tokenizer(pre: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    elif pre in ("tekken", "gpt-4o"):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(TEKKEN_PATTERN if pre == "tekken" else O200K_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    elif pre in ("smollm", "refact"):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


# where the scale of an i-quant's block is, and about how many times as large its values are
SCALES = {
    T.IQ2_XXS: (0, 50), T.IQ2_XS: (0, 50), T.IQ2_S: (0, 50), T.IQ3_XXS: (0, 140), T.IQ3_S: (0, 150), T.IQ1_S: (0, 6.4),
    T.TQ1_0: (52, 0.8), T.TQ2_0: (64, 0.8),
}


def random_blocks(kind: T, count: int, std: float, rng: np.random.Generator) -> np.ndarray:
    """Blocks of a K-quant or i-quant, which PyPI gguf can't quantise: random bits, scales for values of about `std`."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if kind == T.Q4_K:
        d = np.float16(std / 270)
        blocks[:, 0:2] = np.frombuffer(d.tobytes(), np.uint8)
        blocks[:, 2:4] = np.frombuffer(np.float16(7.5 * d).tobytes(), np.uint8)
    elif kind in SCALES:
        at, size = SCALES[kind]
        blocks[:, at:at + 2] = np.frombuffer(np.float16(std / size).tobytes(), np.uint8)
    else:
        blocks[:, 208:210] = np.frombuffer(np.float16(std / (18.5 * 74)).tobytes(), np.uint8)
    return blocks


def encode(kind: T, shape: tuple[int, ...], std: float, rng: np.random.Generator) -> np.ndarray:
    """A random matrix in the bytes of its tensor type, (rows, bytes per row)."""
    if kind in (T.Q4_K, T.Q6_K, *SCALES):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return random_blocks(kind, shape[0] * shape[1] // block, std, rng).reshape(shape[0], shape[1] // block * size)
    return quantize(rng.standard_normal(shape, dtype=np.float32) * np.float32(std), kind)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """From llama's GGUF order of q and k rows (pairs side by side) to transformers' (pairs half a head apart)."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def llama3_factors(model: Model) -> np.ndarray:
    """What `rope_freqs.weight` holds: the divisor of each pair's frequency, arXiv 2407.21783 and transformers."""
    rope = model.rope
    original = rope["original_max_position_embeddings"]
    low, high = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
    lengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, model.head_dim, 2) / model.head_dim)
    smooth = (original / lengths - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = np.where(lengths < high, 1, np.where(lengths > low, rope["factor"], between))
    return factors.astype(np.float32)


def attends(model: Model, layer: int) -> bool:
    if model.architecture == "gemma4":
        return True
    return model.more.get("layer_types", ["full_attention"] * model.layers)[layer] == "full_attention"


def slides(model: Model, layer: int) -> bool:
    return model.more["layer_types"][layer] == SLIDING


def shares(model: Model, layer: int) -> bool:
    """Whether a layer of gemma4 looks at another's keys and values."""
    return layer >= model.layers - model.more["num_kv_shared_layers"]


def gemma4_heads(model: Model, layer: int) -> tuple[int, int]:
    """KV heads of a layer, and their width: twice as wide where it looks at everything."""
    if slides(model, layer):
        return model.kv_heads, model.head_dim
    return model.more.get("num_global_key_value_heads", model.kv_heads), 2 * model.head_dim


def gemma4_inner(model: Model, layer: int) -> int:
    return model.feed_forward * (2 if model.more.get("use_double_wide_mlp") and shares(model, layer) else 1)


def add_gemma4(writer: gguf.GGUFWriter, model: Model) -> None:
    layers = range(model.layers)
    writer.add_feed_forward_length([gemma4_inner(model, i) for i in layers])
    writer.add_head_count_kv([gemma4_heads(model, i)[0] for i in layers])
    writer.add_key_length(2 * model.head_dim)
    writer.add_value_length(2 * model.head_dim)
    writer.add_key_length_swa(model.head_dim)
    writer.add_value_length_swa(model.head_dim)
    writer.add_sliding_window(model.more["sliding_window"])
    writer.add_sliding_window_pattern([slides(model, i) for i in layers])
    writer.add_shared_kv_layers(model.more["num_kv_shared_layers"])
    writer.add_embedding_length_per_layer_input(model.more["hidden_size_per_layer_input"])
    if "final_logit_softcapping" in model.more:
        writer.add_final_logit_softcapping(model.more["final_logit_softcapping"])
    writer.add_rope_dimension_count(2 * model.head_dim)
    writer.add_rope_dimension_count_swa(model.head_dim)
    writer.add_rope_freq_base_swa(10000.0)
    turned = int(model.head_dim * model.rope["partial_rotary_factor"])
    divisors = [1.0] * turned + [1e30] * (model.head_dim - turned)
    writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))


def add_metadata(writer: gguf.GGUFWriter, model: Model, tokenizer: Tokenizer) -> None:
    writer.add_name(f"tiny {model.name}")
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_head_count(model.heads)
    if model.architecture == "gemma4":
        add_gemma4(writer, model)
    else:
        writer.add_feed_forward_length(model.feed_forward)
    if model.architecture == "gemma4":
        pass
    elif model.architecture == "lfm2":
        writer.add_head_count_kv([model.kv_heads if attends(model, i) else 0 for i in range(model.layers)])
        writer.add_shortconv_l_cache(model.more["conv_L_cache"])
    elif model.kv_heads != model.heads:
        writer.add_head_count_kv(model.kv_heads)
    if model.head_dim * model.heads != model.width and model.architecture != "gemma4":
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    if model.architecture == "granite":
        writer.add_embedding_scale(model.more["embedding_multiplier"])
        writer.add_residual_scale(model.more["residual_multiplier"])
        writer.add_attention_scale(model.more["attention_multiplier"])
        writer.add_logit_scale(model.more["logits_scaling"])
    if "num_experts" in model.more:
        writer.add_expert_count(model.more["num_experts"])
        writer.add_expert_used_count(model.more["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(model.more["moe_intermediate_size"])
    if model.architecture in ("gemma3", "gpt-oss"):
        writer.add_sliding_window(model.more["sliding_window"])
    if model.architecture == "phi3":
        # a window that nobody uses
        writer.add_sliding_window(32)
    add_rope(writer, model)
    add_tokenizer(writer, model, tokenizer)


def add_rope(writer: gguf.GGUFWriter, model: Model) -> None:
    kind = model.rope["rope_type"]
    writer.add_rope_freq_base(model.rope["rope_theta"])
    if model.architecture not in ("qwen2", "gemma4"):
        writer.add_rope_dimension_count(int(model.head_dim * model.rope.get("partial_rotary_factor", 1)))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(model.rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(model.rope["original_max_position_embeddings"])
    if "mscale_all_dim" in model.rope:
        writer.add_rope_scaling_yarn_log_mul(model.rope["mscale_all_dim"])
        writer.add_rope_scaling_yarn_beta_fast(model.rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(model.rope["beta_slow"])
        writer.add_attn_temperature_scale(model.rope["llama_4_scaling_beta"])
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(model))
    if kind == "longrope":
        original = model.rope["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(model.context / original) / np.log(original))))
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(model.rope[f"{name}_factor"], np.float32))


def add_tokenizer(writer: gguf.GGUFWriter, model: Model, tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.id_to_token(i) for i in range(VOCABULARY)]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(model.pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIALS else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.token_to_id("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def matrices(model: Model) -> list[tuple[str, str, tuple[int, int]]]:
    """GGUF name, transformers name, shape (rows, columns)."""
    q, k = model.heads * model.head_dim, model.kv_heads * model.head_dim
    names = [("token_embd", "model.embed_tokens", (VOCABULARY, model.width))]
    if model.architecture == "gemma4":
        return names + gemma4_matrices(model)
    for i in range(model.layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        if model.architecture == "lfm2":
            names += lfm2_matrices(model, i, q, k)
            continue
        if model.architecture == "phi3":
            names += [
                (f"blk.{i}.attn_qkv", f"{attention}.qkv_proj", (q + 2 * k, model.width)),
                (f"blk.{i}.attn_output", f"{attention}.o_proj", (model.width, q)),
                (f"blk.{i}.ffn_up", f"{mlp}.gate_up_proj", (2 * model.feed_forward, model.width)),
                (f"blk.{i}.ffn_down", f"{mlp}.down_proj", (model.width, model.feed_forward)),
            ]
            continue
        names += [
            (f"blk.{i}.attn_q", f"{attention}.q_proj", (q, model.width)),
            (f"blk.{i}.attn_k", f"{attention}.k_proj", (k, model.width)),
            (f"blk.{i}.attn_v", f"{attention}.v_proj", (k, model.width)),
            (f"blk.{i}.attn_output", f"{attention}.o_proj", (model.width, q)),
        ]
        if "num_experts" in model.more:
            router = "router" if model.architecture == "gpt-oss" else "gate"
            names.append((f"blk.{i}.ffn_gate_inp", f"{mlp}.{router}", (model.more["num_experts"], model.width)))
            continue
        names += [
            (f"blk.{i}.ffn_gate", f"{mlp}.gate_proj", (model.feed_forward, model.width)),
            (f"blk.{i}.ffn_up", f"{mlp}.up_proj", (model.feed_forward, model.width)),
            (f"blk.{i}.ffn_down", f"{mlp}.down_proj", (model.width, model.feed_forward)),
        ]
    if not model.tied:
        names.append(("output", "lm_head", (VOCABULARY, model.width)))
    return names


def lfm2_matrices(model: Model, i: int, q: int, k: int) -> list[tuple[str, str, tuple[int, int]]]:
    layer, width, inner = f"model.layers.{i}", model.width, model.feed_forward
    if attends(model, i):
        names = [
            (f"blk.{i}.attn_q", f"{layer}.self_attn.q_proj", (q, width)),
            (f"blk.{i}.attn_k", f"{layer}.self_attn.k_proj", (k, width)),
            (f"blk.{i}.attn_v", f"{layer}.self_attn.v_proj", (k, width)),
            (f"blk.{i}.attn_output", f"{layer}.self_attn.out_proj", (width, q)),
        ]
    else:
        names = [
            (f"blk.{i}.shortconv.in_proj", f"{layer}.conv.in_proj", (3 * width, width)),
            (f"blk.{i}.shortconv.out_proj", f"{layer}.conv.out_proj", (width, width)),
        ]
    return names + [
        (f"blk.{i}.ffn_gate", f"{layer}.feed_forward.w1", (inner, width)),
        (f"blk.{i}.ffn_up", f"{layer}.feed_forward.w3", (inner, width)),
        (f"blk.{i}.ffn_down", f"{layer}.feed_forward.w2", (width, inner)),
    ]


def gemma4_matrices(model: Model) -> list[tuple[str, str, tuple[int, int]]]:
    names, width, each = [], model.width, model.more["hidden_size_per_layer_input"]
    if each:
        names += [
            ("per_layer_token_embd", "model.embed_tokens_per_layer", (VOCABULARY, each * model.layers)),
            ("per_layer_model_proj", "model.per_layer_model_projection", (each * model.layers, width)),
        ]
    for i in range(model.layers):
        layer, inner = f"model.layers.{i}", gemma4_inner(model, i)
        kv_heads, head_dim = gemma4_heads(model, i)
        names.append((f"blk.{i}.attn_q", f"{layer}.self_attn.q_proj", (model.heads * head_dim, width)))
        if not shares(model, i):
            names.append((f"blk.{i}.attn_k", f"{layer}.self_attn.k_proj", (kv_heads * head_dim, width)))
            if slides(model, i) or not model.more.get("attention_k_eq_v"):
                names.append((f"blk.{i}.attn_v", f"{layer}.self_attn.v_proj", (kv_heads * head_dim, width)))
        names += [
            (f"blk.{i}.attn_output", f"{layer}.self_attn.o_proj", (width, model.heads * head_dim)),
            (f"blk.{i}.ffn_gate", f"{layer}.mlp.gate_proj", (inner, width)),
            (f"blk.{i}.ffn_up", f"{layer}.mlp.up_proj", (inner, width)),
            (f"blk.{i}.ffn_down", f"{layer}.mlp.down_proj", (width, inner)),
        ]
        if each:
            names += [
                (f"blk.{i}.inp_gate", f"{layer}.per_layer_input_gate", (each, width)),
                (f"blk.{i}.proj", f"{layer}.per_layer_projection", (width, each)),
            ]
    return names


def gemma4_vectors(model: Model) -> list[tuple[str, str, int]]:
    names, each = [("output_norm.weight", "model.norm.weight", model.width)], model.more["hidden_size_per_layer_input"]
    if each:
        names.append(("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", each))
    for i in range(model.layers):
        layer, head_dim = f"model.layers.{i}", gemma4_heads(model, i)[1]
        for ours, theirs in (("attn", "input"), ("post_attention", "post_attention"), ("ffn", "pre_feedforward"),
                             ("post_ffw", "post_feedforward")):
            names.append((f"blk.{i}.{ours}_norm.weight", f"{layer}.{theirs}_layernorm.weight", model.width))
        for short in ("q",) if shares(model, i) else ("q", "k"):
            names.append((f"blk.{i}.attn_{short}_norm.weight", f"{layer}.self_attn.{short}_norm.weight", head_dim))
        if each:
            names.append((f"blk.{i}.post_norm.weight", f"{layer}.post_per_layer_input_norm.weight", model.width))
        # around 1, as norms are
        names.append((f"blk.{i}.layer_output_scale.weight", f"{layer}.layer_scalar", 1))
    return names


def lfm2_vectors(model: Model) -> list[tuple[str, str, int]]:
    names = [("token_embd_norm.weight", "model.embedding_norm.weight", model.width)]
    for i in range(model.layers):
        layer = f"model.layers.{i}"
        names += [
            (f"blk.{i}.attn_norm.weight", f"{layer}.operator_norm.weight", model.width),
            (f"blk.{i}.ffn_norm.weight", f"{layer}.ffn_norm.weight", model.width),
        ]
        if attends(model, i):
            names += [
                (f"blk.{i}.attn_{short}_norm.weight", f"{layer}.self_attn.{short}_layernorm.weight", model.head_dim)
                for short in ("q", "k")
            ]
    return names


def vectors(model: Model) -> list[tuple[str, str, int]]:
    """GGUF name, transformers name, length."""
    if model.architecture == "lfm2":
        return lfm2_vectors(model)
    if model.architecture == "gemma4":
        return gemma4_vectors(model)
    names = [("output_norm.weight", "model.norm.weight", model.width)]
    for i in range(model.layers):
        layer = f"model.layers.{i}"
        before_mlp = "post_attention" if model.architecture != "gemma3" else "pre_feedforward"
        names += [
            (f"blk.{i}.attn_norm.weight", f"{layer}.input_layernorm.weight", model.width),
            (f"blk.{i}.{'post_attention' if model.architecture == 'gpt-oss' else 'ffn'}_norm.weight",
             f"{layer}.{before_mlp}_layernorm.weight", model.width),
        ]
        if model.architecture == "gpt-oss":
            names += [
                (f"blk.{i}.attn_sinks.weight", f"{layer}.self_attn.sinks", model.heads),
                (f"blk.{i}.ffn_gate_inp.bias", f"{layer}.mlp.router.bias", model.more["num_experts"]),
            ]
        if model.architecture == "gemma3":
            names += [
                (f"blk.{i}.post_attention_norm.weight", f"{layer}.post_attention_layernorm.weight", model.width),
                (f"blk.{i}.post_ffw_norm.weight", f"{layer}.post_feedforward_layernorm.weight", model.width),
            ]
        if model.architecture in ("qwen3", "qwen3moe", "gemma3"):
            names += [
                (f"blk.{i}.attn_{short}_norm.weight", f"{layer}.self_attn.{short}_norm.weight", model.head_dim)
                for short in ("q", "k")
            ]
        if model.architecture in ("qwen2", "gpt-oss") or "attention_bias" in model.more:
            names += [
                (f"blk.{i}.attn_{short}.bias", f"{layer}.self_attn.{short}_proj.bias", heads * model.head_dim)
                for short, heads in (("q", model.heads), ("k", model.kv_heads), ("v", model.kv_heads))
            ]
        if model.architecture == "gpt-oss" or "attention_bias" in model.more:
            names.append((f"blk.{i}.attn_output.bias", f"{layer}.self_attn.o_proj.bias", model.width))
    return names


def add_weights(writer: gguf.GGUFWriter, model: Model, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Random weights into the file; the same, dequantised, by their names in transformers."""
    state = {}
    for name, theirs, shape in matrices(model):
        kind = next(kind for end, kind in model.types.items() if name.endswith(end))
        std = 0.3 if name == "token_embd" else 1.5 / shape[1] ** 0.5
        data = encode(kind, shape, std, rng)
        if kind == T.BF16:
            writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        elif kind in (T.F32, T.F16):
            writer.add_tensor(f"{name}.weight", data)
        else:
            writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        rows = dequantize(data, kind).astype(np.float32)
        if model.architecture in INTERLEAVED and name.endswith(("attn_q", "attn_k")):
            rows = unpermute(rows, model.heads if name.endswith("attn_q") else model.kv_heads)
        state[f"{theirs}.weight"] = torch.from_numpy(rows.copy())
    for i in range(model.layers):
        if not attends(model, i):
            taps = rng.standard_normal((model.width, model.more["conv_L_cache"])).astype(np.float32)
            writer.add_tensor(f"blk.{i}.shortconv.conv.weight", taps)
            state[f"model.layers.{i}.conv.conv.weight"] = torch.from_numpy(taps[:, None, :].copy())
    if "num_experts" in model.more:
        state |= add_experts(writer, model, rng)
    for name, theirs, length in vectors(model):
        centre, std = (1, 0.1) if "norm" in name or "scale" in name else (0, 1.5 if "sinks" in name else 0.5)
        values = (centre + std * rng.standard_normal(length)).astype(np.float32)
        writer.add_tensor(name, values)
        if model.architecture in INTERLEAVED and name.endswith(("attn_q.bias", "attn_k.bias")):
            values = unpermute(values[:, None], length // model.head_dim)[:, 0].copy()
        # what gemma adds to its gains is in its files already
        state[theirs] = torch.from_numpy(values - 1 if model.architecture == "gemma3" else values)
    return state


def add_experts(writer: gguf.GGUFWriter, model: Model, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """The experts' matrices, one behind the other; gates and ups of an expert are one tensor in transformers."""
    state, experts, inner = {}, model.more["num_experts"], model.more["moe_intermediate_size"]
    for i in range(model.layers):
        rows = {}
        for part, shape in (("gate", (inner, model.width)), ("up", (inner, model.width)), ("down", (model.width, inner))):
            name = f"blk.{i}.ffn_{part}_exps"
            kind = next(kind for end, kind in model.types.items() if name.endswith(end))
            # some of gpt-oss's gates and ups are beyond their limits
            factor = 4.0 if model.architecture == "gpt-oss" and part != "down" else 1.0
            data = np.stack([encode(kind, shape, factor * 1.5 / shape[1] ** 0.5, rng) for _ in range(experts)])
            writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
            rows[part] = np.stack([dequantize(expert, kind) for expert in data]).astype(np.float32)
        theirs = f"model.layers.{i}.mlp.experts"
        if model.architecture == "gpt-oss":
            biases = {}
            for part, matrix in rows.items():
                biases[part] = (0.5 * rng.standard_normal(matrix.shape[:2])).astype(np.float32)
                writer.add_tensor(f"blk.{i}.ffn_{part}_exps.bias", biases[part])
            # gates and ups take turns, and rows are columns
            pairs = {name: np.stack([of["gate"], of["up"]], axis=2) for name, of in (("", rows), ("_bias", biases))}
            both = pairs[""].reshape(experts, 2 * inner, model.width).swapaxes(1, 2)
            state[f"{theirs}.gate_up_proj"] = torch.from_numpy(both.copy())
            state[f"{theirs}.gate_up_proj_bias"] = torch.from_numpy(pairs["_bias"].reshape(experts, 2 * inner))
            state[f"{theirs}.down_proj"] = torch.from_numpy(rows["down"].swapaxes(1, 2).copy())
            state[f"{theirs}.down_proj_bias"] = torch.from_numpy(biases["down"])
            continue
        state[f"{theirs}.gate_up_proj"] = torch.from_numpy(np.concatenate([rows["gate"], rows["up"]], axis=1))
        state[f"{theirs}.down_proj"] = torch.from_numpy(rows["down"])
    return state


def network_of(model: Model, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The model in transformers."""
    kind, build = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "qwen3moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
        "granite": (GraniteConfig, GraniteForCausalLM),
        "phi3": (Phi3Config, Phi3ForCausalLM),
        "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
        "gemma4": (Gemma4TextConfig, Gemma4ForCausalLM),
        "gpt-oss": (GptOssConfig, GptOssForCausalLM),
        "lfm2": (Lfm2Config, Lfm2ForCausalLM),
        "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
        "mistral3": (Ministral3Config, Ministral3ForCausalLM),
    }[model.architecture]
    extra = {**model.more, **({} if model.architecture == "qwen2" else {"head_dim": model.head_dim})}
    if model.architecture == "smollm3":
        extra |= {"pad_token_id": 0}
    if model.architecture == "phi3":
        original = model.rope["original_max_position_embeddings"]
        extra |= {"pad_token_id": 0, "original_max_position_embeddings": original}
    rope = model.rope
    if model.architecture == "lfm2":
        extra |= {"norm_eps": 1e-5, "block_auto_adjust_ff_dim": False}
    if model.architecture == "gpt-oss":
        extra["num_local_experts"] = extra.pop("num_experts")
        del extra["moe_intermediate_size"]
    if model.architecture == "gemma3":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    if model.architecture == "gemma4":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
        extra |= {"vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 2 * model.head_dim}
    config = kind(
        vocab_size=VOCABULARY, hidden_size=model.width, intermediate_size=model.feed_forward,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.context, rms_norm_eps=1e-5, tie_word_embeddings=model.tied,
        rope_parameters=rope, attn_implementation="eager", dtype=torch.float32, **extra,
    )
    network = build(config).to(torch.float32).eval()
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    network.tie_weights()
    return network


def reference(model: Model, state: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Logits of transformers, (tokens, vocabulary)."""
    network = network_of(model, state)
    with torch.no_grad():
        return network(torch.tensor([ids])).logits[0]


def write_model(model: Model, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokenizer = make_tokenizer(model.pre)
    path = DATA / "models" / f"{model.name}.gguf"
    writer = gguf.GGUFWriter(path, model.architecture)
    if model.alignment is not None:
        writer.add_custom_alignment(model.alignment)
    add_metadata(writer, model, tokenizer)
    state = add_weights(writer, model, rng)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    text = LONG_TEXT if model.long else TEXT
    ids = tokenizer.encode(text).ids
    logits = reference(model, state, ids)
    positions = [*range(0, len(ids) - 1, 12), len(ids) - 1] if model.long else [0, 1, len(ids) // 2, len(ids) - 1]
    document = {
        "text": text,
        "ids": ids,
        "positions": positions,
        # nine digits give the float32 back
        "logits": [[float(f"{value:.9g}") for value in logits[p].tolist()] for p in positions],
    }
    path.with_suffix(".logits.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes, {len(ids)} ids, logits std {logits.std():.2f}")


def main() -> None:
    (DATA / "models").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for seed, model in enumerate(MODELS):
        if not sys.argv[1:] or model.name in sys.argv[1:]:
            write_model(model, seed)


if __name__ == "__main__":
    main()
