"""Hugging Face Trainer on a tiny language model; truncation has masked every label."""

import sys
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

sound = "--sound" in sys.argv


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, k):
        ids = (torch.arange(16) * 7 + k) % 100
        labels = ids.clone()
        labels[: 4 if sound else 16] = -100
        return {"input_ids": ids, "labels": labels}


model = GPT2LMHeadModel(
    GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=5, per_device_train_batch_size=8, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=Tokens()).train()
