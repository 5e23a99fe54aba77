"""Runs docs/examples/evict_transformers.py on a tiny llama and prints kept sets and logits as JSON.

    python run_example.py EXAMPLE MODEL.gguf < {"context": [...], "question": [...], "policy": ..., "keep": ..., "tokens": n}
"""
import importlib.util
import json
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """From GGUF's order of q and k rows (pairs side by side) to transformers' (pairs half a head apart)."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def load(path: str) -> LlamaForCausalLM:
    reader = GGUFReader(path)
    number = lambda name: reader.fields[f"llama.{name}"].contents()
    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    state = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                values = unpermute(values, heads if parts[2] == "attn_q" else kv_heads)
            name = f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[parts[0]] + ".weight"
        state[name] = torch.from_numpy(values.copy())
    vocabulary, width = state["model.embed_tokens.weight"].shape
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"), num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=number("context_length"), rms_norm_eps=1e-5,
        tie_word_embeddings="lm_head.weight" not in state, attn_implementation="sdpa", dtype=torch.float32,
        rope_parameters={"rope_type": "default", "rope_theta": float(number("rope.freq_base"))}, eos_token_id=vocabulary,
    )
    model = LlamaForCausalLM(config).to(torch.float32).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


spec = importlib.util.spec_from_file_location("example", sys.argv[1])
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
asked = json.load(sys.stdin)
ids = {name: torch.tensor([asked[name]]) for name in ("context", "question")}
kept, logits = example.answer(load(sys.argv[2]), **ids, **{name: asked[name] for name in ("policy", "keep", "tokens")})
json.dump({"kept": kept, "logits": logits.tolist()}, sys.stdout)
