"""Plain torch: forward, and forward with a backward pass to activations alone."""

import time

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from data import collate, load_model, read


def forward(model, batch):
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def forward_backward(model, batch):
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:].flatten()
    cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum").backward()


def run(phase, dtype, arguments):
    """[[real tokens, seconds] of each batch]."""
    work = {"forward": forward, "forward-backward": forward_backward}[phase]
    model = load_model(arguments.model, dtype)
    train, _ = read(arguments.tokens)
    pieces = []
    for batch in DataLoader(train, batch_size=arguments.batch, collate_fn=collate):
        start = time.perf_counter()
        work(model, batch)
        pieces.append([int(batch["attention_mask"].sum()), time.perf_counter() - start])
    return {"pieces": pieces}
