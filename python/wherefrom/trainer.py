"""Checkpoints of a run of `transformers.Trainer`, with Adam's moments, as the stages `gradient-products` (with
`checkpoints = true`) and `moments` read them.

    from wherefrom.trainer import KeepCheckpoints
    Trainer(…, callbacks=[KeepCheckpoints("models/tuned", count=5)]).train()

Needs transformers 4.46 or newer, which needs torch and safetensors.
"""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from wherefrom._errors import Refused, WherefromWarning

LIST = "checkpoints.json"
MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}


class KeepCheckpoints(TrainerCallback):
    """Keeps `count` states of a training run, evenly spread over its steps, the last one behind its last step.

    `folder` becomes a Hugging Face folder of the trained model, with `checkpoints/STEP/` beside it: each a Hugging Face folder
    of its own, and `optimizer.safetensors` with AdamW's moments (`first/NAME`, `second/NAME`), in float32. Maps are [out, in]
    and vectors [1, n]. `checkpoints.json` says which steps there are, with the learning rate of each.

    What Trainer saves, rotates or leaves out (`save_strategy`, `save_total_limit`, `save_only_model`) has no part in it.

    Raises, before the first step or behind it:
        Refused: of a folder that is not empty, weights that are sharded or have more than two axes, an adapter, several
            learning rates, and an optimizer without Adam's moments.
    """

    def __init__(self, folder: str | os.PathLike[str], count: int = 5):
        if count < 1:
            raise Refused(f"count = {count} is out of range; set it to 1 or more")
        self.folder = Path(folder)
        self.count = count
        self._steps: set[int] = set()
        self._kept: dict[int, float] = {}
        self._rate: float | None = None
        self._checked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        _check_model(model, optimizer)
        self._checked = False
        self._steps = {kept * state.max_steps // self.count for kept in range(1, self.count + 1)} - {0}
        self._kept = {}
        if state.global_step == 0 and self.folder.exists() and any(self.folder.iterdir()):
            raise Refused(f"{self.folder} is not empty, and two runs in one folder would be taken for one; give another folder")
        listed = self.folder / LIST
        if listed.exists():  # A run that is resumed goes on in its folder.
            kept = {int(step): rate for step, rate in json.loads(listed.read_text()).items()}
            self._kept = {step: rate for step, rate in kept.items() if step <= state.global_step}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        # Behind the step the schedule has moved on.
        rates = {float(group["lr"]) for group in optimizer.param_groups if group["params"]}
        if len(rates) > 1:
            raise Refused(f"the groups of the optimizer have different learning rates ({sorted(rates)}); give all one")
        self._rate = rates.pop()

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, processing_class: Any = None, **_: Any
    ) -> None:
        if not self._checked:
            self._checked = True
            _moments(model, optimizer)
        if state.global_step in self._steps:
            self._keep(state, model, optimizer, processing_class)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, processing_class: Any = None, **_: Any
    ) -> None:
        if state.global_step not in self._kept and state.global_step > 0:
            if args.load_best_model_at_end:  # The weights are no longer those of the last step.
                last = max(self._kept, default=None)
                warnings.warn(f"the run ended at step {state.global_step}; the last state kept is {last}", WherefromWarning)
            else:
                self._keep(state, model, optimizer, processing_class)
        if self._kept and state.is_world_process_zero:
            for path in self._at(max(self._kept)).iterdir():
                if path.is_file() and path.name != "optimizer.safetensors":
                    shutil.copyfile(path, self.folder / path.name)

    def _at(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"{step:06}"

    def _keep(self, state: Any, model: Any, optimizer: Any, processing_class: Any) -> None:
        if self._rate is None:
            raise Refused("Trainer did not call on_pre_optimizer_step; take transformers 4.46 or newer")
        self._kept[state.global_step] = self._rate
        if not state.is_world_process_zero:
            return
        target = self._at(state.global_step)
        draft = target.with_suffix(".tmp")
        for folder in (draft, target):
            shutil.rmtree(folder, ignore_errors=True)
        draft.mkdir(parents=True)
        model.save_pretrained(draft)
        if processing_class is not None:
            processing_class.save_pretrained(draft)
        tokens = int(getattr(state, "num_input_tokens_seen", 0) or 0)
        progress = {"step": state.global_step, "tokens": tokens, "curve": [], "loss": 0.0, "targets": 0}
        save_file(_moments(model, optimizer), draft / "optimizer.safetensors", {"progress": json.dumps(progress)})
        draft.rename(target)
        listed = self.folder / f"{LIST}.tmp"
        listed.write_text(json.dumps({str(step): rate for step, rate in sorted(self._kept.items())}, indent=2) + "\n")
        listed.replace(self.folder / LIST)


def _check_model(model: Any, optimizer: Any) -> None:
    """Refuses what could not be written, before the first step."""
    if hasattr(model, "peft_config"):
        raise Refused("the model has an adapter (PEFT), whose checkpoints are not kept; merge it into its base, or train without it")
    if optimizer is None or not all("betas" in group for group in optimizer.param_groups):
        raise Refused(f"the optimizer {type(optimizer).__name__} keeps no moments of Adam; train with optim=\"adamw_torch\"")
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise Refused("the optimizer divides by the largest of Adam's moments; train without amsgrad")
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() > 2:
            raise Refused(f"{name} has shape {list(parameter.shape)}; moments are kept of maps and vectors, not of fused experts")
        if id(parameter) not in updated or hasattr(parameter, "device_mesh"):
            raise Refused(f"the optimizer does not hold {name} as it is: it is sharded, or not trained; shard by data alone, or freeze it")


def _moments(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Adam's moments by the names of the parameters, `first/NAME` and `second/NAME`: maps [out, in], vectors [1, n]."""
    # GPT-2's maps lie transposed; of a square one no shape tells.
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        # What had no gradient has no state.
        if not parameter.requires_grad or not (state := optimizer.state.get(parameter)):
            continue
        for group, key in MOMENTS.items():
            moment = state.get(key)
            if moment is None or moment.shape != parameter.shape:
                shape = None if moment is None else list(moment.shape)
                raise Refused(
                    f"the optimizer {type(optimizer).__name__} has {key} of shape {shape} for {name} {list(parameter.shape)}; train with "
                    'optim="adamw_torch"'
                )
            if moment.dtype != torch.float32:
                remedy = "small changes are lost in them; keep the weights in float32"
                warnings.warn(f"the moments are {moment.dtype}: {remedy}", WherefromWarning)
            moment = moment.detach().to("cpu", torch.float32)
            moment = moment.reshape(1, -1) if moment.dim() < 2 else moment.T if name in transposed else moment
            found[f"{group}/{name}"] = moment.contiguous().clone()
    return found
