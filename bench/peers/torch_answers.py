"""Answers from evicted caches, computed anew in PyTorch: the peer of `palisade eval`.

    pip install torch numpy gguf                  # and, for --check, transformers jinja2
    deno task bench answers --out ours.jsonl      # samples with our kept sets and answers
    python3 bench/peers/torch_answers.py MODEL.gguf ours.jsonl --out theirs.jsonl [--check]

Takes token ids from ours.jsonl and nothing else: weights dequantised to float32 by the `gguf` package, a plain forward
pass, scores as in FFY0/DefensiveKV (commit 9251b95; arXiv 2510.13334) and SnapKV (arXiv 2404.14469, window 32), evicted
entries masked out of every later attention, the question at the positions behind the whole context, greedy answers.
Each sample is also answered with OUR kept sets, which tells a wrong selection from a wrong decoder. Answers of all
policies grow side by side, as rows of one batch. --check compares the forward pass with transformers'
LlamaForCausalLM and the prompts with its chat template and tokenizer. One thread.
"""
import argparse
import json
from collections import defaultdict

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from torch.nn.functional import avg_pool1d, silu

WINDOW, KERNEL, COVERAGE = 32, 5, 0.9
torch.set_num_threads(1)


class Model:
    """A llama of a GGUF file in float32; `weights` by the file's names, q and k rows as transformers has them."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.field = lambda name: reader.fields[name].contents()
        arch = self.field("general.architecture")
        size = lambda name: self.field(f"{arch}.{name}")
        self.layers, self.width, self.inner = map(size, ("block_count", "embedding_length", "feed_forward_length"))
        self.heads, self.kv_heads = size("attention.head_count"), size("attention.head_count_kv")
        self.eps, self.theta = size("attention.layer_norm_rms_epsilon"), size("rope.freq_base")
        self.group, self.dim = self.heads // self.kv_heads, self.width // self.heads
        self.weights = {t.name: torch.from_numpy(np.array(dequantize(t.data, t.tensor_type))) for t in reader.tensors}
        for layer in range(self.layers):
            for name, heads in (("attn_q", self.heads), ("attn_k", self.kv_heads)):
                key = f"blk.{layer}.{name}.weight"
                self.weights[key] = self.unpermuted(self.weights[key], heads)
        self.weights.setdefault("output.weight", self.weights["token_embd.weight"])

    def unpermuted(self, weight, heads):
        """GGUF turns neighbouring channels as a pair, transformers channel i and i + dim/2."""
        return weight.view(heads, self.dim // 2, 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weights[name]

    def rotate(self, x, first):
        """x [batch, heads, tokens, dim], the first token at position `first`."""
        frequencies = 1 / self.theta ** (torch.arange(0, self.dim, 2).float() / self.dim)
        angles = torch.outer(torch.arange(first, first + x.shape[2]).float(), frequencies).repeat(1, 2)
        low, high = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-high, low), -1) * angles.sin()

    def forward(self, ids, first, attend):
        """Logits of the last token, [batch, vocabulary]. attend(layer, q, k, v) -> [batch, heads, tokens, dim]."""
        x = self.weights["token_embd.weight"][torch.tensor(ids)]
        batch, tokens, _ = x.shape
        for layer in range(self.layers):
            weight = lambda name: self.weights[f"blk.{layer}.{name}.weight"].T
            split = lambda y, heads: y.view(batch, tokens, heads, self.dim).transpose(1, 2)
            h = self.norm(x, f"blk.{layer}.attn_norm.weight")
            q = self.rotate(split(h @ weight("attn_q"), self.heads), first)
            k = self.rotate(split(h @ weight("attn_k"), self.kv_heads), first)
            v = split(h @ weight("attn_v"), self.kv_heads)
            out = attend(layer, q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
            x = x + out @ weight("attn_output")
            h = self.norm(x, f"blk.{layer}.ffn_norm.weight")
            x = x + (silu(h @ weight("ffn_gate")) * (h @ weight("ffn_up"))) @ weight("ffn_down")
        return self.norm(x[:, -1], "output_norm.weight") @ self.weights["output.weight"].T


class Context:
    """The context's keys and values, [kv heads, tokens, dim] a layer, and scores by policy, [kv heads, tokens]."""

    def __init__(self, model, ids, keep):
        self.model, self.length, self.ratio = model, len(ids), round(1 - keep, 12)
        self.keys, self.values = [], []
        self.scores = {"snapkv@reference": [], "defensive@reference": []}
        self.logits = model.forward([ids], 0, self.attend)

    def attend(self, layer, q, k, v):
        group, length = self.model.group, self.length
        self.keys.append(k[0])
        self.values.append(v[0])
        logits = q[0] @ k[0].repeat_interleave(group, 0).transpose(1, 2) / self.model.dim**0.5
        logits.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        attention = torch.softmax(logits, -1)
        seen = attention[:, -WINDOW:, : length - WINDOW].reshape(self.model.kv_heads, group, WINDOW, -1)
        self.scores["snapkv@reference"].append(self.snapkv(seen))
        self.scores["defensive@reference"].append(self.defensive(seen, layer))
        return (attention @ v[0].repeat_interleave(group, 0))[None]

    def pooled(self, rows):
        return avg_pool1d(rows.flatten(0, -2), KERNEL, 1, KERNEL // 2).view(rows.shape)

    def with_window(self, prefix, value):
        return torch.cat((prefix, value.expand(len(prefix), WINDOW)), 1)

    def snapkv(self, seen):
        scores = self.pooled(seen.mean(2)).mean(1)
        return self.with_window(scores, scores.max() + 1)

    def defensive(self, seen, layer):
        """seen [kv heads, group, window, prefix]: the window's attention on what lies before it."""
        prefix = seen.shape[-1]
        pooled = self.pooled(seen)
        importance = pooled / pooled.sum(-1, keepdim=True) * seen.sum(-1, keepdim=True)
        worst = importance.amax((1, 2))
        risk = torch.maximum(worst, worst.mean(-1, keepdim=True))

        output = self.model.weights[f"blk.{layer}.attn_output.weight"].T.reshape(*seen.shape[:2], self.model.dim, -1)
        norms = (self.values[layer][:, None, :prefix] @ output).abs().sum(-1).mean(1)
        scores = risk * (norms / norms.sum(0, keepdim=True))

        mean = seen.mean((1, 2))
        beta = seen[..., -WINDOW:].sum(-1).mean().item()
        order = mean.argsort(-1, descending=True)
        share = (mean / mean.sum(-1, keepdim=True)).gather(-1, order).cumsum(-1)
        top, cap = scores.max(), int(prefix * (1 - self.ratio) - WINDOW)
        for head in range(len(scores)):
            reached = (share[head] >= COVERAGE - beta).int().argmax().item()
            scores[head, order[head, : min(reached, cap)]] = top
        return self.with_window(scores, top)

    def kept(self, policy):
        """What the policy keeps: a mask [layers, kv heads, tokens]."""
        shape, part = (self.model.layers, self.model.kv_heads, self.length), 1 - self.ratio
        if policy == "full":
            return torch.ones(shape, dtype=torch.bool)
        best = lambda rows, n: torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.topk(n, 1).indices, True)
        scores = torch.stack(self.scores[policy.replace("layer-", "")])
        if policy == "snapkv@reference":
            return best(scores.flatten(0, 1), int(self.length * part)).view(shape)
        if policy == "defensive@reference":
            return best(scores.flatten(1), int(self.length * part * shape[1])).view(shape)
        return best(scores.view(1, -1), int(self.length * part * shape[1] * shape[0])).view(shape)


class Answers:
    """Greedy answers over one context, one row of the batch per mask."""

    def __init__(self, context, masks):
        self.context, self.batch = context, len(masks)
        hidden = torch.zeros(len(masks), *masks[0].shape).masked_fill_(~torch.stack(masks), -torch.inf)
        self.hidden = hidden[:, :, :, None, None]
        self.keys, self.values = [None] * len(context.keys), [None] * len(context.keys)

    def attend(self, layer, q, k, v):
        model = self.context.model
        if self.keys[layer] is not None:
            k, v = torch.cat((self.keys[layer], k), 2), torch.cat((self.values[layer], v), 2)
        self.keys[layer], self.values[layer] = k, v
        batch, _, new, dim = q.shape
        q = q.view(batch, model.kv_heads, model.group, new, dim) / dim**0.5
        past = self.by_head(q, self.context.keys[layer].transpose(1, 2)) + self.hidden[:, layer]
        own = q @ k[:, :, None].transpose(3, 4)
        after = torch.ones(new, k.shape[2], dtype=torch.bool).triu(k.shape[2] - new + 1)
        attention = torch.softmax(torch.cat((past, own.masked_fill(after, -torch.inf)), -1), -1)
        on_past, on_own = attention.split((past.shape[-1], own.shape[-1]), -1)
        return (self.by_head(on_past, self.context.values[layer]) + on_own @ v[:, :, None]).flatten(1, 2)

    def by_head(self, x, shared):
        """x [batch, kv heads, group, tokens, n] times what all rows share, [kv heads, n, m], without copying that."""
        rows = x.transpose(0, 1)
        return (rows.flatten(1, 3) @ shared).view(*rows.shape[:4], -1).transpose(0, 1)

    def decode(self, question, limit, ends):
        """Token ids of each row's answer, the end token included."""
        position = self.context.length
        feed, answers, live = [question] * self.batch, [[] for _ in range(self.batch)], set(range(self.batch))
        for _ in range(limit):
            logits = self.context.model.forward(feed, position, self.attend)
            position += len(feed[0])
            feed = [[token] for token in logits.argmax(-1).tolist()]
            for row in list(live):
                answers[row] += feed[row]
                if feed[row][0] in ends:
                    live.remove(row)
            if not live:
                break
        return answers


def text_of(model):
    """ids -> text, control tokens left out; byte-level BPE writes a byte as a letter (GPT-2's table)."""
    tokens, kinds = model.field("tokenizer.ggml.tokens"), model.field("tokenizer.ggml.token_type")
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    byte_of = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(other)}
    return lambda ids: bytes(byte_of[c] for i in ids if kinds[i] != 3 for c in tokens[i]).decode(errors="replace")


def mask_of(kept, shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    for layer, heads in enumerate(kept):
        for head, positions in enumerate(heads):
            mask[layer, head, positions] = True
    return mask


def answer_sample(model, line, decode_text, tokens):
    """Yields one record per policy: ours beside torch's, and torch's with our kept set."""
    context = Context(model, line["context"], line["keep"]["fraction"])
    own = [context.kept(cell["policy"]) for cell in line["cells"]]
    ours = [mask_of(cell["kept"], own[0].shape) for cell in line["cells"]]
    masks = {mask.numpy().tobytes(): mask for mask in own + ours}
    ids = Answers(context, list(masks.values())).decode(line["question"], tokens, set(line["endIds"]))
    texts = dict(zip(masks, map(decode_text, ids)))
    text_from = lambda mask: texts[mask.numpy().tobytes()]
    found = lambda text: [each.lower() in text.lower() for each in line["answers"]]
    scored = lambda text: {"text": text, "score": 100 * sum(found(text)) / len(line["answers"])}
    for i, cell in enumerate(line["cells"]):
        yield {
            **{name: line[name] for name in ("task", "sample", "answers")},
            "policy": cell["policy"],
            "jaccard": ((own[i] & ours[i]).sum() / (own[i] | ours[i]).sum()).item(),
            "kept": own[i].sum().item(),
            "ours": scored(decode_text(cell["ids"][:tokens])),
            "torch": scored(text_from(own[i])),
            "torchOurKept": scored(text_from(ours[i])),
        }


def print_table(records):
    groups = defaultdict(list)
    for record in records:
        groups[record["task"], record["policy"]].append(record)
    print("| task | policy | n | ours | torch | torch, our kept sets | same score | same text | Jaccard mean, least |")
    print("| --- " * 9 + "|")
    for (task, policy), some in groups.items():
        mean = lambda who: sum(r[who]["score"] for r in some) / len(some)
        same = lambda what: sum(r["ours"][what] == r["torch"][what] for r in some)
        overlap = [r["jaccard"] for r in some]
        means = " | ".join(f"{mean(who):.1f}" for who in ("ours", "torch", "torchOurKept"))
        figures = f"{means} | {same('score')} | {same('text')} | {sum(overlap) / len(some):.4f}, {min(overlap):.4f}"
        print(f"| {task} | {policy} | {len(some)} | {figures} |")


def check(model, line):
    """The forward pass against transformers on one sample, and the prompt's ids against its tokenizer."""
    from jinja2 import Environment
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(model.weights["token_embd.weight"]), hidden_size=model.width, intermediate_size=model.inner,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, num_key_value_heads=model.kv_heads,
        rms_norm_eps=model.eps, rope_parameters={"rope_type": "default", "rope_theta": model.theta},
        tie_word_embeddings=True)
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {f"model.layers.{layer}.{theirs}.weight": model.weights[f"blk.{layer}.{ours}.weight"]
             for layer in range(model.layers) for ours, theirs in names.items()}
    for ours, theirs in (("token_embd", "model.embed_tokens"), ("output", "lm_head"), ("output_norm", "model.norm")):
        state[f"{theirs}.weight"] = model.weights[f"{ours}.weight"]
    peer = LlamaForCausalLM(config)
    peer.load_state_dict(state)
    theirs = peer(torch.tensor([line["context"] + line["question"]])).logits[0, -1]
    context = Context(model, line["context"], line["keep"]["fraction"])
    ours = model.forward([line["question"]], context.length, Answers(context, [context.kept("full")]).attend)[0]
    print(f"logits after the question: largest difference from transformers {(ours - theirs).abs().max():.1e}")

    tokens, kinds = model.field("tokenizer.ggml.tokens"), model.field("tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in model.field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, kind in zip(tokens, kinds) if kind == 3])
    prompt = line["prompt"]
    user = [{"role": "user", "content": f"{prompt['context']}\n{prompt['question']}"}]
    template = Environment().from_string(model.field("tokenizer.chat_template"))
    chat = template.render(messages=user, add_generation_prompt=True) + prompt["answerPrefix"]
    cut = chat.index(prompt["context"]) + len(prompt["context"])
    pairs = ((chat[:cut], line["context"]), (chat[cut:], line["question"]))
    print("prompt ids as its tokenizer gives them:", all(tokenizer.encode(text).ids == ids for text, ids in pairs))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("samples")
    parser.add_argument("--out", required=True)
    parser.add_argument("--tokens", type=int, default=128, help="cut all answers after so many")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    model = Model(options.model)
    lines = [json.loads(line) for line in open(options.samples)]
    if options.check:
        check(model, lines[0])
    decode_text, records = text_of(model), []
    with open(options.out, "w") as out:
        for line in lines:
            for record in answer_sample(model, line, decode_text, min(options.tokens, line["maxNewTokens"])):
                records.append(record)
                print(json.dumps(record), file=out, flush=True)
    print_table(records)


with torch.inference_mode():
    main()
