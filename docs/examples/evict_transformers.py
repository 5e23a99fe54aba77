"""Reads a text with transformers, lets `palisade evict` say a layer at a time over a pipe what stays of its KV cache,
prunes the cache, and answers from what is kept. Policies whose heads keep alike: snapkv, critical, keydiff, …

    python evict_transformers.py HuggingFaceTB/SmolLM2-135M-Instruct book.txt "Who is Ishmael?"
"""
import ctypes, json, os, shlex, subprocess, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
PALISADE = shlex.split(os.environ.get("PALISADE", "palisade"))

def decide(tensors, policy, keep):
    header, data, at = {}, [], 0
    for part, tensor in tensors.items():  # a safetensors file: the header's length, the header, the numbers
        tensor = tensor.detach().to("cpu", torch.float32).contiguous()
        header[f"layers/0/{part}"] = dict(dtype="F32", shape=list(tensor.shape), data_offsets=[at, at := at + tensor.nbytes])
        data.append(ctypes.string_at(tensor.data_ptr(), tensor.nbytes))
    text = json.dumps(header).encode()
    dump, command = b"".join([len(text).to_bytes(8, "little"), text, *data]), [*PALISADE, "evict", "-", "--policy", policy, "--keep", keep]
    lines = subprocess.run(command, input=dump, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    return [json.loads(line)["kept"] for line in lines]

@torch.no_grad()
def answer(model, context, question, policy="snapkv", keep="20%", tokens=32):
    cache, kept, name = DynamicCache(config=model.config), [], model.config._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS[name]
    def watched(module, query, key, value, *rest, **options):  # queries and keys as they come: behind RoPE
        kept.append(decide(dict(q=query[0], k=key[0], v=value[0], wo=module.o_proj.weight), policy, keep))
        return attend(module, query, key, value, *rest, **options)
    ALL_ATTENTION_FUNCTIONS[name] = watched
    model(context, past_key_values=cache)
    ALL_ATTENTION_FUNCTIONS[name] = attend
    for layer, heads in zip(cache.layers, kept):
        rows = torch.tensor(heads, device=layer.keys.device)[None, :, :, None].expand(-1, -1, -1, layer.keys.shape[-1])
        layer.keys, layer.values = layer.keys.gather(2, rows), layer.values.gather(2, rows)
    ids, logits, position = question, [], context.shape[1]  # kept keys stay where they were
    while len(logits) < tokens and (not logits or ids.item() != model.config.eos_token_id):
        positions = torch.arange(position, position + ids.shape[1], device=ids.device)[None]
        logits.append(model(ids, past_key_values=cache, position_ids=positions).logits[:, -1])
        position, ids = position + ids.shape[1], logits[-1].argmax(-1, keepdim=True)
    return kept, torch.cat(logits)

if __name__ == "__main__":
    name, path, asked = sys.argv[1:]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name, attn_implementation="sdpa"), AutoTokenizer.from_pretrained(name)
    context, question = (tokenizer(text, return_tensors="pt").input_ids for text in (open(path).read(), f"\n{asked}\n"))
    print(tokenizer.decode(answer(model, context, question)[1].argmax(-1), skip_special_tokens=True))
