"""torch on the same card: its ceilings, and forward with a backward pass to activations alone on the same shapes.

Asked for nothing it says what it is; of `ceilings N` and `shape JSON BATCH SEQUENCES LENGTH DTYPE` what was measured, as a line
of JSON."""

import json
import sys
import time

import torch
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention, silu

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
RUNS = 5


def about():
    said = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "device": DEVICE}
    if CUDA:
        card = torch.cuda.get_device_properties(0)
        said.update(name=card.name, memory_bytes=card.total_memory, processors=card.multi_processor_count)
    return said


def seconds(body):
    body()
    best = float("inf")
    for _ in range(RUNS):
        sync()
        start = time.perf_counter()
        body()
        sync()
        best = min(best, time.perf_counter() - start)
    return best


def sync():
    if CUDA:
        torch.cuda.synchronize()


def ceilings(most):
    said = {}
    for name, dtype in [("f32", torch.float32), ("f16", torch.float16)]:
        n, best = min(256, most), {"flops": 0.0}
        while True:
            x = torch.rand(n, n, device=DEVICE).to(dtype) - 0.5
            taken = seconds(lambda: x @ x)
            flops = 2 * n**3 / taken
            if flops > best["flops"]:
                best = {"n": n, "flops": flops}
            if taken > 0.03 or 2 * n > most:
                break
            n *= 2
        said[name] = best
    x = torch.ones(most, most, device=DEVICE)
    said["copy"] = 2 * 4 * most**2 / seconds(lambda: x + 1)
    return said


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def shape(config, batch_tokens, sequences, length, dtype):
    """Tokens a second of each batch but the first."""
    torch.manual_seed(0)
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    groups, head = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]

    def weight(*sizes):
        return torch.randn(*sizes, device=DEVICE, dtype=dtype) * 0.02

    embedding = weight(config["vocab_size"], hidden)
    gain = torch.ones(hidden, device=DEVICE, dtype=dtype)
    sizes = [heads * head, groups * head, groups * head]
    layers = [
        ([weight(size, hidden) for size in sizes], weight(hidden, heads * head))
        + ([weight(inner, hidden), weight(inner, hidden)], weight(hidden, inner))
        for _ in range(config["num_hidden_layers"])
    ]
    angles = torch.outer(torch.arange(length), config["rope_theta"] ** -(torch.arange(0, head, 2) / head))
    cos, sin = (f(torch.cat((angles, angles), -1)).to(DEVICE, dtype) for f in (torch.cos, torch.sin))

    def logits(x):
        for qkv, out, gate_up, down in layers:
            normed = rms_norm(x, (hidden,), gain, 1e-5)
            q, k, v = ((normed @ w.T).unflatten(-1, (-1, head)).transpose(1, 2) for w in qkv)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            k, v = (y.repeat_interleave(heads // groups, 1) for y in (k, v))
            x = x + scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ out.T
            normed = rms_norm(x, (hidden,), gain, 1e-5)
            gate, up = (normed @ w.T for w in gate_up)
            x = x + (silu(gate) * up) @ down.T
        return rms_norm(x, (hidden,), gain, 1e-5) @ embedding.T

    rows = max(1, batch_tokens // length)
    said = {"forward": [], "forward-backward": []}
    for name, rates in said.items():
        for _ in range(max(2, sequences // rows)):
            ids = torch.randint(config["vocab_size"], (rows, length), device=DEVICE)
            sync()
            start = time.perf_counter()
            if name == "forward":
                with torch.no_grad():
                    logits(embedding[ids])
            else:
                scores = logits(embedding[ids].requires_grad_())
                cross_entropy(scores[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").backward()
            sync()
            rates.append(rows * length / (time.perf_counter() - start))
    return {name: sorted(rates[1:])[len(rates[1:]) // 2] for name, rates in said.items()}


def main(words):
    if not words:
        return about()
    if words[0] == "ceilings":
        return ceilings(int(words[1]))
    dtype = {"f32": torch.float32, "f16": torch.float16}[words[5]]
    said = shape(json.loads(words[1]), *map(int, words[2:5]), dtype)
    if CUDA:
        said["device_bytes"] = torch.cuda.max_memory_reserved()
    return said


print(json.dumps(main(sys.argv[1:])))
