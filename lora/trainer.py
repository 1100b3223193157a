"""The training loop of an adapter: steps, validations, checkpoints, and when to stop."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from pipeline.adapter_files import Adapter
from pipeline.dicom_profiles import DicomProfile

from .adapter_base import DTYPES, add_lora, load_init
from .checkpoint import load_checkpoint, save_checkpoint
from .config import AdapterConfig
from .data import TrainingData
from .encoding import EMPTY, EncodedData
from .guidance import GuidanceDistillation
from .matching import FeatureMatching
from .objective import Objective, denoising_losses, learning_rate_at
from .own_samples import OwnSamples, discriminative_loss
from .peak_memory import peak_memory
from .run_folder import RunFolder
from .run_history import RunHistory
from .samples import CopyCheck, Sampler, decode, write_sheet
from .validation import ValidationLoss

LOG_EVERY = 10
# Weight of the denoising loss beside that of matching: what captions name is forgotten less (malaria parasites were).
ANCHOR = 0.2
# The losses by stage, and the setting that says how long the stage may go on unseen.
NAMED = {"loss": "validate_every", "discriminative_loss": "round_steps", "matching_loss": "match_steps"}


class AdapterTrainer:
    """A run: the adapter's weights as they are trained, their moving average, the best so far, and the history.

    Plain denoising, or the distillation of guidance, comes first, then the rounds against own samples and the matching
    of features, where the configuration asks for them.

    Step `s` draws its images, noise and wordings from (seed, s) alone, so that neither a break nor the number of
    processes changes what is learnt. What is decided (the best weights, when to stop) follows from the history.
    """

    def __init__(
        self,
        config: AdapterConfig,
        accelerator: Accelerator,
        pipe: Any,
        data: TrainingData,
        encoded: EncodedData,
        folder: RunFolder,
        init: Adapter | None = None,
    ) -> None:
        self.config, self.accelerator, self.pipe, self.folder = config, accelerator, pipe, folder
        self.data, self.encoded = data, encoded
        self.training = np.flatnonzero(~data.validation)
        self.objective = Objective.of(pipe.scheduler, encoded.latents.shape[-1], config.noise_shift)
        # Kept and not read again at the end: a model's folder may change while hours of training go by.
        self.full_precision = copy.deepcopy(pipe.unet).cpu() if accelerator.mixed_precision != "no" else None
        self.lora = torch.nn.ParameterList(add_lora(pipe.unet, config, DTYPES[accelerator.mixed_precision]))
        if init is not None:
            load_init(pipe.unet, init, config.rank)
        self.ema, self.best = (
            torch.nn.ParameterList(p.detach().clone() for p in self.lora).requires_grad_(False) for _ in range(2)
        )
        self.loss_scale = torch.nn.ParameterList([torch.zeros(2)]).requires_grad_(False)  # of fp16
        self.own = OwnSamples(self) if config.rounds else None
        self.optimizer = torch.optim.AdamW(
            self.lora.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.model, self.prepared = accelerator.prepare(pipe.unet, self.optimizer)
        self.sampler = Sampler(pipe, accelerator, encoded.embeddings, config.batch)
        guidance = config.distil_guidance
        self.losses = denoising_losses if guidance is None else GuidanceDistillation(self, guidance)
        self.validation_loss = ValidationLoss(
            self.objective, accelerator, data, encoded, batch=config.batch, seed=config.seed, losses=self.losses
        )
        self.copy_check = CopyCheck(encoded.latents, data.groups, data.validation)
        self.matching = FeatureMatching(self) if config.match_steps else None
        self.history = RunHistory(config)
        self.step, self.seconds = 0, 0.0

    # ---- weights ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def weights(self, which: Iterable[torch.Tensor]) -> Iterator[None]:
        """Put other weights into the denoiser for a while."""
        kept = [parameter.detach().clone() for parameter in self.lora]
        copy_weights(which, self.lora)
        try:
            yield
        finally:
            copy_weights(kept, self.lora)

    @contextlib.contextmanager
    def bare_base(self) -> Iterator[None]:
        """Take the adapter off for a while: weights of zero add nothing."""
        with self.weights([torch.zeros_like(parameter) for parameter in self.lora]):
            yield

    def _stored(self) -> dict[str, torch.nn.Module]:
        more = {**(self.own.stored if self.own else {}), **(self.matching.stored if self.matching else {})}
        return {"lora": self.lora, "ema": self.ema, "best": self.best, "loss_scale": self.loss_scale, **more}

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
        self.history.records = [record for record in log if "copies" in record]

    # ---- the modality of an image --------------------------------------------------------------------------------

    def profile(self, index: int) -> DicomProfile:
        """The profile that an image drawn for the caption of image `index` gets."""
        profile: DicomProfile = self.pipe._profile(self.data.plain(index), self.config.modality, None, required=False)
        return profile

    def noise_of(self, index: int) -> dict[str, Any] | None:
        """The noise that the pipeline draws into it, None where it draws none."""
        return (self.pipe.config.image_noise or {}).get(self.profile(index).name)

    # ---- one step -----------------------------------------------------------------------------------------------

    def train_step(self) -> torch.Tensor:
        """One optimizer step; returns the loss, this process's share of it."""
        config, step, number = self.config, self.step, None
        begun, matching = self.history.rounds_begin(), self.history.matching_begins(self.step)
        if matching is not None:
            step, steps, peak = self.step - matching, config.match_steps, config.match_learning_rate
        elif begun is not None:
            number, step = divmod(self.step - begun, config.round_steps)
            steps, peak = config.round_steps, config.round_learning_rate
        else:
            steps, peak = config.steps, config.learning_rate
        most = config.ema_decay
        if matching is not None or number is not None:
            most = min(most, 1 - 4 / max(steps, 4))  # over the last quarter
            if step == 0:
                self.begin_stage(number)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, peak)
        total = torch.zeros((), device=self.accelerator.device)
        self.model.train()
        for micro in range(config.accumulate):
            last = micro == config.accumulate - 1
            # What is matched does not go through the wrapped model: its gradients are summed up below.
            with contextlib.nullcontext() if last and matching is None else self.accelerator.no_sync(self.model):
                losses = self._losses(micro, number) if matching is None else self._matching().losses(micro)
                loss = self._backward(losses)
                if matching is not None:
                    self._backward(ANCHOR * self._losses(micro, None))
            total += loss / config.accumulate
        if matching is not None:
            for parameter in self.lora:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        self.accelerator.clip_grad_norm_(self.lora.parameters(), 1.0)
        self.prepared.step()
        self.prepared.zero_grad(set_to_none=True)
        decay = min(most, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema), list(self.lora), 1 - decay)
        self.step += 1
        return total

    def _backward(self, losses: torch.Tensor) -> torch.Tensor:
        """Add the gradient of this process's share of a batch, and return its loss."""
        loss = losses.sum() * self.accelerator.num_processes / self.config.batch
        self.accelerator.backward(loss)
        return loss.detach()

    def _losses(self, micro: int, number: int | None) -> torch.Tensor:
        """The loss of each image, or in a round of each pair of images, of this process's share of a batch."""
        clean, noise, position, embedded = self._draw_batch(micro, number)
        noisy, timesteps, target = self.objective.corrupt(clean, noise, position)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        if number is None:
            return self.losses(self.model, noisy, timesteps, embedded, target)
        reference = self._reference_errors(noisy, timesteps, embedded, target)
        losses = denoising_losses(self.model, noisy, timesteps, embedded, target)
        return discriminative_loss(losses.view(2, -1), reference.view(2, -1))

    def _matching(self) -> FeatureMatching:
        assert self.matching is not None
        return self.matching

    def _draw_batch(
        self, micro: int, number: int | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw this process's share of a batch: clean latents, noise, places of the levels (on the CPU), captions.

        In a round real images come first, then as many own samples with the same noise levels.
        """
        config = self.config
        rng = np.random.default_rng([config.seed, self.step, micro])
        index = rng.choice(self.training, config.batch, replace=config.batch > len(self.training))
        text = self.encoded.wordings[rng.integers(len(self.encoded.wordings), size=config.batch), index]
        text[rng.random(config.batch) < config.caption_drop] = EMPTY
        draw = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = self.encoded.latents[torch.from_numpy(index)].float()
        noise, position = torch.randn(clean.shape, generator=draw), torch.rand(config.batch, generator=draw)
        parts = [(clean, noise, position, text)]
        if self.own is not None and number is not None:
            index = rng.choice(config.round_samples, config.batch, replace=config.batch > config.round_samples)
            text = self.own.captions(number)[index]
            text[rng.random(config.batch) < config.caption_drop] = EMPTY
            clean = self.own.latents[0].detach()[torch.from_numpy(index)]
            parts.append((clean, torch.randn(clean.shape, generator=draw), position, text))
        # Each process takes its share of the one global batch.
        rank, world, device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        clean, noise, position = (torch.cat([part[i][rank::world] for part in parts]) for i in range(3))
        embedded = torch.cat([self.encoded.embeddings[torch.from_numpy(p[3][rank::world])] for p in parts]).float()
        return clean.to(device), noise.to(device), position, embedded.to(device)

    # ---- rounds against own samples, and matching ---------------------------------------------------------------

    def begin_stage(self, number: int | None) -> None:
        """Start a round, or with None the matching, from the best weights so far, and draw its first samples.

        In a round these weights are the reference.
        """
        for weights in (self.lora, self.ema):
            copy_weights(self.best, weights)
        self.optimizer.state.clear()
        if number is None:
            self._matching().begin()
        else:
            assert self.own is not None
            copy_weights(self.best, self.own.reference)
            self.own.draw(number)

    @torch.no_grad()
    def _reference_errors(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, embedded: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        assert self.own is not None
        with self.weights(self.own.reference), self.accelerator.autocast():
            return denoising_losses(self.pipe.unet, noisy, timesteps, embedded, target)

    # ---- validation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Loss on held-out images, samples, copies among them; keeps the best weights; returns the log's line."""
        # The first validation is the bare base's, whatever adapter training goes on from.
        with self.weights(self.ema), contextlib.nullcontext() if self.history.records else self.bare_base():
            losses = self.validation_loss.measure(self.pipe.unet)
            latents = self.sampler.draw(*self.sheet_requests())
            stage = self.history.stage_of(self.step)
            distance = {"feature_distance": self._matching().distance()} if "matched" in stage else {}
        self.check_finite(float(losses.sum()) if len(losses) else 0.0)
        record = {
            "step": self.step,
            "validation_loss": round(float(losses.mean()), 6) if len(losses) else None,
            "copies": self.copy_check.count(latents),
            "samples": len(latents),
            "seconds": self.seconds,
            "peak_memory": peak_memory(),
        }
        record |= {**stage, **distance}
        self.history.records.append(record)
        if self.history.best() is record:
            copy_weights(self.ema, self.best)
        if self.accelerator.is_main_process:
            self.write_sheet(latents, f"step-{self.step:06d}")
            self.folder.add_to_log(record)
        return record

    def kind_of_loss(self) -> str:
        """What the log calls the loss of the last step."""
        if self.history.matching_begins(self.step - 1) is not None:
            return "matching_loss"
        return "loss" if self.history.rounds_begin() is None else "discriminative_loss"

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
        """Put the best weights on the base as they are shipped and used: at `strength`, in half, on full precision.

        A strength is put into the B matrices, so that the file at weight 1 is what it would have been at that weight.
        """
        final = [parameter.detach().half().float() for parameter in self.best]
        if self.full_precision is not None:
            self.accelerator.free_memory()
            self.pipe.unet = self.full_precision.to(self.accelerator.device)
            self.lora = torch.nn.ParameterList(add_lora(self.pipe.unet, self.config, torch.float32))
            self.sampler = Sampler(self.pipe, self.accelerator, self.encoded.embeddings, self.config.batch, exact=True)
            self.validation_loss.exact = True
        copy_weights(final, self.lora)
        with torch.no_grad():
            for name, parameter in self.pipe.unet.named_parameters():
                if ".lora_B." in name:
                    parameter.copy_((parameter * self.config.strength).half())
        # The memory order that a loaded model has: then samples are equal to the last bit.
        self.pipe.unet.eval().to(memory_format=torch.contiguous_format)
        self.pipe.vae.to(memory_format=torch.contiguous_format)

    def write_sheet(self, latents: torch.Tensor, name: str) -> None:
        """Decode samples and lay them on a sheet."""
        images = decode(self.pipe.vae, latents, self.accelerator.device)
        write_sheet(images, self.folder.samples / f"{name}.jpg")

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
        if not self.history.records:
            self.validate()
            self.save()
        losses: list[torch.Tensor] = []
        main = self.accelerator.is_main_process
        planned = self.config.steps + self.config.rounds * self.config.round_steps + self.config.match_steps
        bar = tqdm(total=planned, initial=self.step, desc="training", disable=not main, mininterval=1)
        while (reason := self.history.stop_reason(self.step)) is None:
            losses.append(self.train_step())
            self.seconds = time.monotonic() - begun
            bar.update()
            validated = self.history.validation_due(self.step)
            if self.step % LOG_EVERY == 0 or validated:
                loss = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))
                losses = []
                self.check_finite(loss)
                bar.set_postfix(loss=f"{loss:.4f}")
                kind = self.kind_of_loss()
                if main:
                    self.folder.add_to_log({"step": self.step, kind: loss, "seconds": self.seconds})
            if validated:
                self.validate()
            if validated or self.step % self.config.save_every == 0:
                self.save()
        bar.close()
        if self.history.best() is None:
            name = NAMED[self.kind_of_loss()]
            raise ValueError(
                f"`{name}` is {getattr(self.config, name)}: so early the samples already copy training images; take "
                "fewer, lower the learning rate, or give more images"
            )
        return reason


def copy_weights(source: Any, target: Any) -> None:
    """Copy parameters in place; what autocast has kept of them in lower precision is dropped."""
    with torch.no_grad():
        for one, other in zip(source, target, strict=True):
            other.copy_(one)
    torch.clear_autocast_cache()
