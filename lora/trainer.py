"""The training loop of an adapter: steps, validations, checkpoints, and when to stop."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .adapter_base import DTYPES, add_lora
from .checkpoint import load_checkpoint, save_checkpoint
from .config import AdapterConfig
from .data import TrainingData
from .encoding import EMPTY, EncodedData
from .objective import Objective, learning_rate_at
from .run_folder import RunFolder
from .samples import CopyCheck, Sampler, decode, write_sheet
from .validation import ValidationLoss

LOG_EVERY = 10
COPIES_ALLOWED = 0.25  # share of the samples


class AdapterTrainer:
    """A run: the adapter's weights as they are trained, their moving average, the best so far, and the history.

    Step `s` draws its images, noise and wordings from (seed, s) alone, so that neither a break nor the number of
    processes changes what is learnt. What is decided (the best weights, when to stop) follows from the history, the
    lines of the log that validations wrote.
    """

    def __init__(
        self,
        config: AdapterConfig,
        accelerator: Accelerator,
        pipe: Any,
        data: TrainingData,
        encoded: EncodedData,
        folder: RunFolder,
    ) -> None:
        self.config, self.accelerator, self.pipe, self.folder = config, accelerator, pipe, folder
        self.data, self.encoded = data, encoded
        self.training = np.flatnonzero(~data.validation)
        self.objective = Objective.of(pipe.scheduler, encoded.latents.shape[-1], config.noise_shift)
        # Kept and not read again at the end: a model's folder may change while hours of training go by.
        self.full_precision = copy.deepcopy(pipe.unet).cpu() if accelerator.mixed_precision != "no" else None
        self.lora = torch.nn.ParameterList(add_lora(pipe.unet, config, DTYPES[accelerator.mixed_precision]))
        self.ema, self.best = (
            torch.nn.ParameterList(p.detach().clone() for p in self.lora).requires_grad_(False) for _ in range(2)
        )
        self.loss_scale = torch.nn.ParameterList([torch.zeros(2)]).requires_grad_(False)  # of fp16
        self.optimizer = torch.optim.AdamW(
            self.lora.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.model, self.prepared = accelerator.prepare(pipe.unet, self.optimizer)
        self.sampler = Sampler(pipe, accelerator, encoded.embeddings, config.batch)
        self.validation_loss = ValidationLoss(
            self.objective, accelerator, data, encoded, batch=config.batch, seed=config.seed
        )
        self.copy_check = CopyCheck(encoded.latents, data.groups, data.validation)
        self.history: list[dict[str, Any]] = []
        self.step, self.seconds = 0, 0.0

    # ---- weights ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def weights(self, which: torch.nn.ParameterList) -> Iterator[None]:
        """Put other weights into the denoiser for a while."""
        kept = [parameter.detach().clone() for parameter in self.lora]
        copy_weights(which, self.lora)
        self.pipe.unet.eval()
        try:
            yield
        finally:
            copy_weights(kept, self.lora)

    @contextlib.contextmanager
    def bare_base(self) -> Iterator[None]:
        """Take the adapter off for a while."""
        self.pipe.unet.disable_adapters()
        try:
            yield
        finally:
            self.pipe.unet.enable_adapters()

    def _stored(self) -> dict[str, torch.nn.Module]:
        return {"lora": self.lora, "ema": self.ema, "best": self.best, "loss_scale": self.loss_scale}

    def save(self) -> None:
        """Write the checkpoint (main process)."""
        if not self.accelerator.is_main_process:
            return
        if self.accelerator.scaler is not None:
            state = self.accelerator.scaler.state_dict()
            copy_weights([torch.tensor([state["scale"], state["_growth_tracker"]])], self.loss_scale)
        save_checkpoint(self.folder.stem, self._stored(), self.optimizer, self.step, self.seconds)

    def resume(self) -> None:
        """Go on from the checkpoint where there is one, else begin."""
        found = self.folder.has_checkpoint
        if found:
            self.step, self.seconds = load_checkpoint(self.folder.stem, self._stored(), self.optimizer)
        if found and self.accelerator.scaler is not None:
            scale, tracker = self.loss_scale[0].tolist()
            state = {"scale": scale, "_growth_tracker": int(tracker)}
            self.accelerator.scaler.load_state_dict({**self.accelerator.scaler.state_dict(), **state})
        log = self.folder.read_log(self.step if found else -1)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.write_log(log)
        self.history = [record for record in log if "copies" in record]

    # ---- one step -----------------------------------------------------------------------------------------------

    def train_step(self) -> torch.Tensor:
        """One optimizer step; returns the loss, this process's share of it."""
        config, device = self.config, self.accelerator.device
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, config.steps, config.learning_rate)
        total = torch.zeros((), device=device)
        self.model.train()
        for micro in range(config.accumulate):
            rng = np.random.default_rng([config.seed, self.step, micro])
            index = rng.choice(self.training, config.batch, replace=config.batch > len(self.training))
            text = self.encoded.wordings[rng.integers(len(self.encoded.wordings), size=config.batch), index]
            text[rng.random(config.batch) < config.caption_drop] = EMPTY
            draw = torch.Generator().manual_seed(int(rng.integers(2**62)))
            clean = self.encoded.latents[torch.from_numpy(index)].float()
            noise, position = torch.randn(clean.shape, generator=draw), torch.rand(config.batch, generator=draw)
            embedded = self.encoded.embeddings[torch.from_numpy(text)].float()
            # Each process takes its share of the one global batch.
            clean, noise, embedded = (tensor[rank::world].to(device) for tensor in (clean, noise, embedded))
            noisy, timesteps, target = self.objective.corrupt(clean, noise, position[rank::world])
            last = micro == config.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                noisy = noisy.contiguous(memory_format=torch.channels_last)
                predicted = self.model(noisy, timesteps, embedded, return_dict=False)[0]
                loss = (predicted.float() - target).square().mean((1, 2, 3)).sum() * world / config.batch
                self.accelerator.backward(loss)
            total += loss.detach() / config.accumulate
        self.accelerator.clip_grad_norm_(self.lora.parameters(), 1.0)
        self.prepared.step()
        self.prepared.zero_grad(set_to_none=True)
        decay = min(config.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema), list(self.lora), 1 - decay)
        self.step += 1
        return total

    # ---- validation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Loss on held-out images, samples, copies among them; keeps the best weights; returns the log's line."""
        with self.weights(self.ema):
            losses = self.validation_loss.measure(self.pipe.unet)
            latents = self.sampler.draw(*self.sheet_requests())
        self.check_finite(float(losses.sum()) if len(losses) else 0.0)
        record = {
            "step": self.step,
            "validation_loss": round(float(losses.mean()), 6) if len(losses) else None,
            "copies": self.copy_check.count(latents),
            "samples": len(latents),
            "seconds": self.seconds,
        }
        self.history.append(record)
        if self.best_record() is record:
            copy_weights(self.ema, self.best)
        if self.accelerator.is_main_process:
            self.write_sheet(latents, f"step-{self.step:06d}")
            self.folder.add_to_log(record)
        return record

    def check_finite(self, loss: float) -> None:
        """Refuse to go on with weights that are lost."""
        if not math.isfinite(loss):
            raise ValueError(
                f"`learning_rate` is {self.config.learning_rate}: the loss is no longer a number after {self.step} "
                "steps; take a lower one, and --overwrite to begin anew"
            )

    def sheet_requests(self) -> tuple[list[int], list[int]]:
        """Rows of the prompts and seeds of the sample sheet, the same for every sheet."""
        count, rows = self.config.sample_count, self.encoded.prompts
        return [int(rows[i % len(rows)]) for i in range(count)], [self.config.seed + i for i in range(count)]

    def put_in_place(self) -> None:
        """Put the best weights on the base as they are shipped and used: rounded to half, on full precision."""
        final = [parameter.detach().half().float() for parameter in self.best]
        if self.full_precision is not None:
            self.accelerator.free_memory()
            self.pipe.unet = self.full_precision.to(self.accelerator.device)
            self.lora = torch.nn.ParameterList(add_lora(self.pipe.unet, self.config, torch.float32))
            self.sampler = Sampler(self.pipe, self.accelerator, self.encoded.embeddings, self.config.batch, exact=True)
            self.validation_loss.exact = True
        copy_weights(final, self.lora)
        # The memory order that a loaded model has: then samples are equal to the last bit.
        self.pipe.unet.eval().to(memory_format=torch.contiguous_format)

    def write_sheet(self, latents: torch.Tensor, name: str) -> None:
        """Decode samples and lay them on a sheet."""
        images = decode(self.pipe.vae, latents, self.accelerator.device)
        write_sheet(images, self.folder.samples / f"{name}.jpg")

    def copying(self, record: dict[str, Any]) -> bool:
        """Whether a validation found more copies than allowed, and more than the bare base makes (history's first)."""
        return record["copies"] > max(COPIES_ALLOWED * record["samples"], self.history[0]["copies"])

    def best_record(self) -> dict[str, Any] | None:
        """The validation whose weights are kept: least loss, or the last where no images are held out."""
        sound = [record for record in self.history[1:] if not self.copying(record)]
        if not sound:
            return None
        return sound[-1] if sound[-1]["validation_loss"] is None else min(sound, key=lambda r: r["validation_loss"])

    def stop_reason(self) -> str | None:
        """Why training ends here; None while it goes on."""
        if len(self.history) > 1 and self.copying(self.history[-1]):
            return "samples copy training images"
        best = self.best_record()
        if best is not None and len(self.history) - 1 - self.history.index(best) >= self.config.patience:
            return "validation loss no longer falls"
        return "all steps done" if self.step >= self.config.steps else None

    # ---- the whole ----------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Train to the end, from the start or from the checkpoint; returns why it ended.

        Raises
        ------
        ValueError
            The first validation already found copies of training images.
        """
        self.resume()
        begun = time.monotonic() - self.seconds
        if not self.history:
            self.validate()
            self.save()
        losses: list[torch.Tensor] = []
        main = self.accelerator.is_main_process
        bar = tqdm(total=self.config.steps, initial=self.step, desc="training", disable=not main, mininterval=1)
        while (reason := self.stop_reason()) is None:
            losses.append(self.train_step())
            self.seconds = time.monotonic() - begun
            bar.update()
            if self.step % LOG_EVERY == 0 or self.step == self.config.steps:
                loss = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))
                losses = []
                self.check_finite(loss)
                bar.set_postfix(loss=f"{loss:.4f}")
                if main:
                    self.folder.add_to_log({"step": self.step, "loss": loss, "seconds": self.seconds})
            validated = self.step % self.config.validate_every == 0 or self.step == self.config.steps
            if validated:
                self.validate()
            if validated or self.step % self.config.save_every == 0:
                self.save()
        bar.close()
        if self.best_record() is None:
            raise ValueError(
                f"`validate_every` is {self.config.validate_every}: so early the samples already copy training images; "
                "validate sooner, lower `learning_rate`, or give more images"
            )
        return reason


def copy_weights(source: Any, target: Any) -> None:
    """Copy parameters in place."""
    with torch.no_grad():
        for one, other in zip(source, target, strict=True):
            other.copy_(one)
