"""Writes what PyTorch makes of the loss of soft tokens, for tests/model/soft_tokens/train_test.ts.

    pip install torch==2.15.0 gguf==0.19.0 transformers==5.23.0 numpy==2.4.6   # in a virtual environment
    python tools/make_soft_token_gradients.py

Result: tests/data/soft_token_gradients.json, for some of the tiny models: `ids` of a context, `answer`, three soft tokens
(`embeddings`, what goes into layer 0), `loss` and `gradient` by autograd through transformers (eager attention, float32).
The loss is written down anew here: over the layers that look at everything and over KV heads, the mean squared distance of the
soft tokens' and the answer's mean attention on the context without its first 4 entries, each scaled to length 1.
"""

import json

import numpy as np
import torch

from make_tiny_models import DATA, LONG_TEXT, MODELS, add_weights, make_tokenizer, network_of

NAMES = ["llama-plain", "qwen3-plain", "gemma3-windows"]
SINKS, SOFT = 4, 3


class Nothing:
    """A writer of GGUF that writes nothing."""

    def add_tensor(self, *_, **__):
        pass


def mean_attention(network, model, context, tokens):
    """For every layer (KV heads, context): what the tokens behind the context look at."""
    count = tokens.shape[0]
    out = network(inputs_embeds=torch.cat([context, tokens])[None], output_attentions=True, use_cache=False)
    maps = []
    for attention in out.attentions:
        rows = attention[0, :, -count:, :-count]
        maps.append(rows.mean(1).view(model.kv_heads, -1, rows.shape[-1]).mean(1))
    return maps


def direction(maps):
    cut = maps[:, SINKS:]
    return cut / cut.norm(dim=1, keepdim=True)


def gradient_of(seed, model):
    state = add_weights(Nothing(), model, np.random.default_rng(seed))
    network = network_of(model, state)
    ids = make_tokenizer(model.pre).encode(LONG_TEXT).ids[:60]
    context, answer = ids[:44], ids[44:]
    embed = lambda numbers: network.get_input_embeddings()(torch.tensor(numbers)).detach()
    start = embed(context)
    soft = torch.from_numpy(np.random.default_rng(7).standard_normal((SOFT, model.width)).astype(np.float32))
    soft = (soft * start.std()).requires_grad_()
    kinds = getattr(network.config, "layer_types", None) or ["full_attention"] * model.layers
    with torch.no_grad():
        wanted = mean_attention(network, model, start, embed(answer))
    seen = mean_attention(network, model, start, soft)
    losses = [
        ((direction(a) - direction(t)) ** 2).sum(1).mean()
        for a, t, kind in zip(seen, wanted, kinds) if kind == "full_attention"
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    digits = lambda tensor: [float(f"{value:.7g}") for value in tensor.detach().flatten().tolist()]
    return {
        "ids": context, "answer": answer, "embeddings": digits(soft), "loss": loss.item(), "gradient": digits(soft.grad),
    }


if __name__ == "__main__":
    found = {model.name: gradient_of(seed, model) for seed, model in enumerate(MODELS) if model.name in NAMES}
    (DATA / "soft_token_gradients.json").write_text(json.dumps(found) + "\n")
