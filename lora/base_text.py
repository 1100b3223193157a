"""The base's tokenizer and text encoder: a small `CLIPTextModel`, taught to read captions before it sees an image.

Ten thousand images are too few to learn language from. The captions are free, though: the encoder is trained to read
back, from its end-of-text token, the facts that a caption states (finding, view, sex, ...), over hundreds of thousands
of wordings. The diffusion model then meets synonyms as one and the same thing. The encoder stays fixed from there on.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import vary_caption
from .checkpoint import load_checkpoint, log_line, save_checkpoint

MAX_LENGTH = 77
HIDDEN = 128
FILLERS = [
    "a",
    "an",
    "the",
    "image",
    "of",
    "picture",
    "please",
    "show",
    "me",
    "generate",
    "create",
    "synthetic",
    "patient",
    "with",
    "in",
    "scan",
    "slice",
    "this",
    "some",
    "realistic",
]


def train_tokenizer(captions: list[str], folder: Path, vocab_size: int = 1600) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer fitted on captions, saved as `vocab.json` and `merges.txt` in `folder`."""
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2 - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in merges]
    # CLIP's own order: bytes, bytes that end a word, merges, the two specials.
    tokens = alphabet + [a + "</w>" for a in alphabet] + [m.replace(" ", "") for m in merges]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, int64 (N, 77), padded and truncated as Stable Diffusion pipelines do."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained encoder for the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=3 * HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=HIDDEN,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def disturb(text: str, rng: np.random.Generator) -> str:
    """Drop, add or misspell a word now and then, as people do."""
    words = text.split(" ")
    if rng.random() < 0.15 and len(words) > 3:
        words.insert(int(rng.integers(len(words))), FILLERS[int(rng.integers(len(FILLERS)))])
    if rng.random() < 0.15:
        words.insert(0, " ".join(rng.choice(FILLERS, int(rng.integers(1, 4)))))
    if rng.random() < 0.1:
        at = int(rng.integers(len(words)))
        if len(words[at]) > 5:
            cut = int(rng.integers(1, len(words[at]) - 1))
            words[at] = words[at][:cut] + words[at][cut + 1 :]
    return " ".join(words)


def train_text_encoder(
    rows: list[dict[str, str]], work: Path, *, steps: int, batch: int = 192, learning_rate: float = 1e-3, seed: int = 0
) -> tuple[CLIPTextModel, CLIPTokenizer, dict[str, float]]:
    """Train (or go on training) the encoder to read facts back; returns it, the tokenizer and held-out accuracies."""
    rng = np.random.default_rng(seed)
    sample = [vary_caption(row, rng) for _ in range(6) for row in rows]
    folder = work / "tokenizer"
    known = (folder / "vocab.json").is_file()
    corpus = [c.text for c in sample] + [" ".join(FILLERS)] * 50
    tokenizer = (
        CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH) if known else train_tokenizer(corpus, folder)
    )
    counts: dict[str, Counter[str]] = {}
    for caption in sample:
        for name, value in caption.said.items():
            counts.setdefault(name, Counter())[value] += 1
    # A sign is either said or not, so silence is its second value; other facts are only asked for where they were said.
    facts = {
        n: sorted(c) + (["no"] if n.startswith("sign_") else [])
        for n, c in sorted(counts.items())
        if sum(c.values()) > 60
    }
    torch.manual_seed(seed)
    encoder = build_text_encoder(tokenizer)
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(HIDDEN, len(values)) for name, values in facts.items()})
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=learning_rate, weight_decay=0.01)
    start, seconds = load_checkpoint(work / "text_encoder", {"encoder": encoder, "heads": heads}, optimizer)
    begun = time.time() - seconds

    def ask(step_rng: np.random.Generator, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        captions = [vary_caption(rows[i], step_rng) for i in step_rng.integers(len(rows), size=count)]
        ids = tokenize(tokenizer, [disturb(c.text, step_rng) for c in captions])
        # Most of 77 tokens are padding: keep a few, and all of it one time in ten, for a third of the cost.
        longest = int((ids != tokenizer.eos_token_id).sum(1).max()) + 1 + int(step_rng.integers(1, 9))
        ids = ids if step_rng.random() < 0.1 else ids[:, :longest]
        targets = {}
        for name, values in facts.items():
            default = "no" if name.startswith("sign_") else None
            said = [c.said.get(name, default) for c in captions]
            targets[name] = torch.tensor([values.index(v) if v in values else -100 for v in said])
        return ids, targets

    def answer(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        # Read the mean of the end-of-text token and the padding behind it: the very positions that a UNet sees most.
        hidden = encoder(ids).last_hidden_state
        end = (ids == tokenizer.eos_token_id).to(hidden.dtype).unsqueeze(-1)
        pooled = (hidden * end).sum(1) / end.sum(1)
        return {name: head(pooled) for name, head in heads.items()}

    bar = tqdm(range(start, steps), initial=start, total=steps, desc="text encoder", mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100, max(0.02, 2 * (1 - step / steps)))
        ids, targets = ask(np.random.default_rng([seed, step]), batch)
        logits = answer(ids)
        losses = [
            functional.cross_entropy(logits[n].float(), t, ignore_index=-100)
            for n, t in targets.items()
            if (t >= 0).any()
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 20 == 0 or step + 1 == steps:
            log_line(
                work / "text_encoder.log.jsonl", {"step": step + 1, "loss": loss.item(), "seconds": time.time() - begun}
            )
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save_checkpoint(
                work / "text_encoder", {"encoder": encoder, "heads": heads}, optimizer, step + 1, time.time() - begun
            )
    with torch.no_grad():
        ids, targets = ask(np.random.default_rng([seed, 10**9]), 2000)
        logits = answer(ids)
    accuracy = {
        n: float((logits[n].argmax(-1) == t)[t >= 0].float().mean()) for n, t in targets.items() if (t >= 0).any()
    }
    return encoder.eval(), tokenizer, accuracy
