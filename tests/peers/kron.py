"""kronfluence: EK-FAC factors and pairwise scores of the MLP modules, at its defaults but for the damping; in bfloat16 with the
arguments that it has for that, on factors of the float32 phases."""

import logging
import time

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.common.factor_arguments import all_low_precision_factor_arguments
from kronfluence.utils.common.score_arguments import all_low_precision_score_arguments
from kronfluence.utils.dataset import DataLoaderKwargs
from torch.nn.functional import cross_entropy

from data import collate, load_model, read

FACTORS = "ekfac"


class LanguageModel(Task):
    """Summed cross-entropy of the targets; notes when each batch begins."""

    def __init__(self, layers):
        self.layers = layers
        self.train, self.query = [], []

    def loss(self, batch, model, sample):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logits = logits[:, :-1].flatten(0, 1)
        labels = batch["labels"][:, 1:].flatten()
        if sample:
            with torch.no_grad():
                drawn = torch.multinomial(logits.softmax(-1), 1).flatten()
            labels = torch.where(labels == -100, labels, drawn)
        return cross_entropy(logits, labels, ignore_index=-100, reduction="sum")

    def compute_train_loss(self, batch, model, sample=False):
        self.train.append((time.perf_counter(), int(batch["attention_mask"].sum())))
        return self.loss(batch, model, sample)

    def compute_measurement(self, batch, model):
        self.query.append(time.perf_counter())
        return self.loss(batch, model, sample=False)

    def get_influence_tracked_modules(self):
        names = ("gate_proj", "up_proj", "down_proj")
        return [f"model.layers.{layer}.mlp.{name}" for layer in range(self.layers) for name in names]

    def get_attention_mask(self, batch):
        return batch["attention_mask"]


def run(phase, dtype, arguments):
    """[[real tokens, seconds] of each batch but the last], seconds a query, and seconds in all."""
    logging.disable(logging.WARNING)
    model = load_model(arguments.model, dtype)
    task = LanguageModel(model.config.num_hidden_layers)
    model = prepare_model(model, task)
    analyzer = Analyzer("bench", model, task, cpu=True, disable_tqdm=True, output_dir=arguments.work)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collate))
    train, queries = read(arguments.tokens)
    factors, scores, name = FactorArguments(strategy="ekfac"), ScoreArguments(), FACTORS
    if dtype == torch.bfloat16:
        factors = all_low_precision_factor_arguments(strategy="ekfac", dtype=dtype)
        scores = all_low_precision_score_arguments(dtype=dtype)
        name = f"{FACTORS}-bf16"
    fit = {
        "dataset": train,
        "per_device_batch_size": arguments.batch,
        "factors_name": name,
        "factor_args": factors,
        "overwrite_output_dir": True,
    }
    if phase == "lambda" and name != FACTORS:
        fit["load_from_factors_name"] = FACTORS
    start = time.perf_counter()
    if phase == "covariance":
        analyzer.fit_covariance_matrices(**fit)
    elif phase == "eigenbasis":
        analyzer.perform_eigendecomposition(factors_name=FACTORS, factor_args=factors, overwrite_output_dir=True)
    elif phase == "lambda":
        analyzer.fit_lambda_matrices(**fit)
    else:
        # As wherefrom has it: a tenth of the mean eigenvalue.
        scores.damping_factor = None
        scores.query_gradient_low_rank = {"scan-8": 32, "scan-full": None}[phase]
        scores.query_gradient_accumulation_steps = len(queries)
        analyzer.compute_pairwise_scores(
            scores_name=f"{phase}-{dtype}",
            factors_name=FACTORS,
            query_dataset=queries,
            train_dataset=train,
            per_device_query_batch_size=1,
            per_device_train_batch_size=arguments.batch,
            score_args=scores,
            overwrite_output_dir=True,
        )
    said = {"seconds": time.perf_counter() - start}
    begun = task.train
    said["pieces"] = [[tokens, after - before] for (before, tokens), (after, _) in zip(begun, begun[1:])]
    if task.query:
        said["query_seconds"] = (begun[0][0] - task.query[0]) / len(task.query)
    return said
