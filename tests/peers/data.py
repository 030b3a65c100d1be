"""The model and the sequences that wherefrom's own phases read, for torch."""

import json

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM


def load_model(folder, dtype):
    """A model in that type with fused attention, its weights frozen."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    model.config.use_cache = False
    return model.requires_grad_(False)


class Sequences(Dataset):
    """Token ids and targets, longest first, so that little is padding."""

    def __init__(self, rows):
        self.rows = sorted(rows, key=lambda row: -len(row["input_ids"]))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def read(path):
    """(training sequences, queries) of the file that `wherefrom-bench` writes."""
    with open(path) as file:
        content = json.load(file)
    return Sequences(content["train"]), Sequences(content["queries"])


def collate(rows):
    """Rows side by side, padded on the right: ids, mask of real tokens, labels (-100 where there is no target)."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    for place, row in enumerate(rows):
        tokens = torch.tensor(row["input_ids"])
        ids[place, : len(tokens)] = tokens
        real[place, : len(tokens)] = 1
        labels[place, : len(tokens)] = torch.where(torch.tensor(row["target_mask"]), tokens, -100)
    return {"input_ids": ids, "attention_mask": real, "labels": labels}
