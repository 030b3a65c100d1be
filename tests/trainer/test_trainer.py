"""`wherefrom.trainer.KeepCheckpoints` in runs of `transformers.Trainer`: what it writes, what it refuses, and that the fixture
which CI reads is what it writes. `just test-trainer` sees to what this needs."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
FIXTURE = REPOSITORY / "tests/fixtures/trainer"
sys.path[:0] = [str(REPOSITORY / "python"), str(FIXTURE)]

import make_fixture  # noqa: E402
import wherefrom as wf  # noqa: E402

CORPUS = make_fixture.rows(1, make_fixture.ROWS)


def steps(folder):
    return {int(step): rate for step, rate in json.loads((folder / "checkpoints.json").read_text()).items()}


def test_the_fixture_is_what_it_writes(tmp_path):
    make_fixture.main(tmp_path)
    old, new = (sorted(path.relative_to(at) for path in (at / "model").rglob("*") if path.is_file()) for at in (FIXTURE, tmp_path))
    assert old == new
    for path in (path for path in old if path.suffix == ".safetensors"):
        was, is_now = load_file(FIXTURE / path), load_file(tmp_path / path)
        assert was.keys() == is_now.keys()
        for name, tensor in was.items():
            torch.testing.assert_close(is_now[name], tensor, rtol=1e-4, atol=1e-7, msg=f"{path}: {name}")
    assert steps(FIXTURE / "model") == steps(tmp_path / "model")
    for name, array in np.load(FIXTURE / "expected.npz").items():
        np.testing.assert_allclose(np.load(tmp_path / "expected.npz")[name], array, rtol=1e-6)


def test_moments_are_those_of_the_optimizer_by_name(tmp_path):
    trainer = make_fixture.trained(tmp_path / "run", CORPUS)
    kept = load_file(tmp_path / "run/checkpoints/000006/optimizer.safetensors")
    named = dict(trainer.model.named_parameters())
    assert {name.partition("/")[2] for name in kept} == set(named)
    for name, parameter in named.items():
        moment = trainer.optimizer.state[parameter]["exp_avg_sq"]
        found = kept[f"second/{name}"]
        if name.endswith(".weight") and moment.dim() == 2 and ".h." in name:
            moment = moment.T  # Conv1D
        assert torch.equal(found, moment.reshape(1, -1) if moment.dim() == 1 else moment), name
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert all(torch.equal(value, dict(model.named_parameters())[name]) for name, value in named.items())


def test_what_trainer_saves_and_rotates_is_nothing_to_it(tmp_path):
    make_fixture.trained(tmp_path / "run", CORPUS, save_strategy="steps", save_steps=1, save_total_limit=1, save_only_model=True)
    assert list(steps(tmp_path / "run")) == [2, 4, 6]
    assert all((tmp_path / f"run/checkpoints/{step:06}/optimizer.safetensors").exists() for step in (2, 4, 6))
    assert not list(tmp_path.glob("run/**/*.tmp"))


def test_rates_are_those_that_the_steps_were_taken_with(tmp_path):
    make_fixture.trained(tmp_path / "run", CORPUS, lr_scheduler_type="cosine", warmup_steps=3)
    schedule = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=make_fixture.RATE)
    cosine = transformers.get_scheduler("cosine", schedule, 3, make_fixture.STEPS)
    rates = []
    for _ in range(make_fixture.STEPS):
        rates.append(cosine.get_last_lr()[0])
        schedule.step()
        cosine.step()
    assert steps(tmp_path / "run") == pytest.approx({step: rates[step - 1] for step in (2, 4, 6)})


def test_a_run_that_is_resumed_goes_on_in_its_folder(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 3

    data = [{"input_ids": row, "labels": row, "attention_mask": [1] * len(row)} for row in CORPUS]

    def trainer(*further):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "trainer"), per_device_train_batch_size=8, max_steps=6, save_strategy="steps", save_steps=3,
            report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        kept = wf_trainer().KeepCheckpoints(tmp_path / "run", count=3)
        return transformers.Trainer(make_fixture.model(), arguments, train_dataset=data, callbacks=[kept, *further])

    trainer(Stop()).train()
    assert list(steps(tmp_path / "run")) == [2, 3], "and the state that it ended with"
    with pytest.raises(wf.Refused, match="not empty"):
        trainer().train()
    trainer().train(resume_from_checkpoint=str(tmp_path / "trainer/checkpoint-3"))
    assert list(steps(tmp_path / "run")) == [2, 3, 4, 6]
    last = load_file(tmp_path / "run/checkpoints/000006/model.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in load_file(tmp_path / "run/model.safetensors").items())


def wf_trainer():
    from wherefrom import trainer

    return trainer


@pytest.mark.parametrize("optimizer, why", [("adafactor", "keeps no moments"), ("sgd", "keeps no moments")])
def test_optimizers_without_adams_moments_are_refused_before_the_first_step(tmp_path, optimizer, why):
    with pytest.raises(wf.Refused, match=why):
        make_fixture.trained(tmp_path / "run", CORPUS, optim=optimizer)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_kept_is_refused(tmp_path):
    import peft

    adapted = peft.get_peft_model(make_fixture.model(), peft.LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True))
    with pytest.raises(wf.Refused, match="adapter"):
        make_fixture.trained(tmp_path / "peft", CORPUS, adapted)
    with pytest.raises(wf.Refused, match="count = 0"):
        wf_trainer().KeepCheckpoints(tmp_path, count=0)
    experts = transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            vocab_size=24, hidden_size=8, intermediate_size=8, moe_intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=4, num_experts=4, num_experts_per_tok=2,
        )
    )  # fmt: skip
    with pytest.raises(wf.Refused, match="experts.*shape"):
        make_fixture.trained(tmp_path / "experts", CORPUS, experts)


def test_what_is_frozen_has_no_moments_and_half_precision_is_warned_of(tmp_path):
    made = make_fixture.model().to(torch.bfloat16)
    made.transformer.wpe.weight.requires_grad_(False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_fixture.trained(tmp_path / "run", CORPUS, made)
    assert any(issubclass(warning.category, wf.WherefromWarning) and "bfloat16" in str(warning.message) for warning in caught)
    kept = load_file(tmp_path / "run/checkpoints/000006/optimizer.safetensors")
    assert "second/transformer.wpe.weight" not in kept and kept["second/transformer.wte.weight"].dtype == torch.float32
