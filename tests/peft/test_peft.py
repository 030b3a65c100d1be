"""Adapters that `fine-tune` trains, loaded by `peft`, and adapters of `peft`'s making, read by wherefrom: both compute the same.
The program is `target/release/wherefrom`, or what WHEREFROM names. `just test-peft` sees to what this needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pyarrow.parquet as pq
import pytest
import torch
import transformers

REPOSITORY = Path(__file__).resolve().parents[2]
FAMILIES = REPOSITORY / "tests/fixtures/families"
PROGRAM = os.environ.get("WHEREFROM", REPOSITORY / "target/release/wherefrom")
sys.path.insert(0, str(FAMILIES))
BASES = {
    "llama3": transformers.LlamaForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "gpt_neox": transformers.GPTNeoXForCausalLM,
    "qwen2": transformers.Qwen2ForCausalLM,
}
LORA = {
    "all": "{ rank = 4, alpha = 6 }",
    "some": '{ rank = 2, alpha = 3, rslora = true, targets = ["%s"] }',
}
TARGETS = {"llama3": 'q_proj", "mlp.down_proj', "gpt2": "c_proj", "gpt_neox": "attention.query_key_value", "qwen2": "up_proj"}


def losses(pipeline, step):
    """{example: loss of each token} of a step `losses`, made if need be."""
    run = lambda *words: subprocess.run([PROGRAM, *words], cwd=pipeline.parent, check=True, capture_output=True, text=True).stdout
    run("run", pipeline.name, "--to", step)
    folder = pipeline.parent / run("path", pipeline.name, step).strip()
    rows = [row for part in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    return folder, {row["example"]: row["by_token"] for row in rows}


def study(base, model, steps):
    return f"""
[model]
path = "{FAMILIES / base}"
{model}
[steps.rows]
stage = "tokenize"
corpus = "{FAMILIES / 'train.jsonl'}"
max-tokens = 16
[steps.losses]
stage = "losses"
inputs = {{ tokens = "rows" }}
{steps}
"""


def agree(model, found):
    """Token losses against those of the model's logits, in float32."""
    for index, line in enumerate((FAMILIES / "train.jsonl").read_text().splitlines()):
        ids = torch.tensor([json.loads(line)["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        torch.testing.assert_close(torch.tensor(found[index][1:]), expected, rtol=2e-5, atol=2e-5)


def load(base):
    return BASES[base].from_pretrained(FAMILIES / base, dtype=torch.float32).eval()


@pytest.mark.parametrize("which", LORA)
@pytest.mark.parametrize("base", BASES)
def test_an_adapter_that_was_trained_here_is_loaded(tmp_path, base, which):
    lora = LORA[which] % TARGETS[base] if which == "some" else LORA[which]
    tuned = f"""
[steps.tuned]
stage = "fine-tune"
inputs = {{ tokens = "rows" }}
adapter = []
epochs = 3
learning-rate = 0.02
lora = {lora}
"""
    pipeline = tmp_path / "study.toml"
    pipeline.write_text(study(base, 'adapter = "tuned"', tuned + "[steps.before]\nstage = \"losses\"\nadapter = []\ninputs = { tokens = \"rows\" }\n"))
    _, before = losses(pipeline, "before")
    _, after = losses(pipeline, "losses")
    assert sum(map(sum, after.values())) < 0.99 * sum(map(sum, before.values()))
    adapter = tmp_path / subprocess.run([PROGRAM, "path", "study.toml", "tuned"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    agree(load(base), before)
    model = peft.PeftModel.from_pretrained(load(base), adapter).eval()
    agree(model, after)
    # Every tensor of the file has found its place, and every adapted map its tensors.
    shapes = {key: tuple(value.shape) for key, value in peft.get_peft_model_state_dict(model).items()}
    from safetensors.torch import load_file
    assert shapes == {key: tuple(value.shape) for key, value in load_file(adapter / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("base", ["llama3", "gpt2"])
def test_an_adapter_that_peft_trained_is_read(tmp_path, base):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights="gaussian")
    model = peft.get_peft_model(load(base), config)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.02)
    for line in (FAMILIES / "train.jsonl").read_text().splitlines():
        ids = torch.tensor([json.loads(line)["input_ids"]])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "lora")
    pipeline = tmp_path / "study.toml"
    pipeline.write_text(study(base, 'adapter = "lora"', ""))
    agree(model.eval(), losses(pipeline, "losses")[1])
