"""The base's autoencoder, trained from nothing: a small `AutoencoderKL`, 256x256x3 to 32x32x8.

Trained on crops (an eighth of the cost of whole images on a CPU), fixed small noise on the latents so that the decoder
forgives what a diffusion model gets slightly wrong. Its bar is linear PCA of patches at the same latent size.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file
from tqdm.auto import tqdm

from .checkpoint import load_checkpoint, log_line, save_checkpoint
from .perceptual import load_perceptual, perceptual_loss
from .precision import autocast

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 64, 128),
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": 256,
}
# Small batches of small crops: early on it is the number of steps that counts, not the quiet of the gradient.
CRITIC_AHEAD = 100  # steps that the critic learns before the decoder listens to it
LATENT_NOISE = 0.05  # standard deviation of the noise on latents, relative to theirs


def to_tensor(images: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1).contiguous()


def psnr(images: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each pair, uint8-scaled arrays (N, H, W, 3)."""
    error = ((images.astype(np.float32) - restored.astype(np.float32)) ** 2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-6))


def pca_bar(
    train: np.ndarray, val: np.ndarray, patch: int = 8, components: int = CONFIG["latent_channels"]
) -> np.ndarray:
    """PSNR in dB of each val image under linear PCA of RGB patches fitted on `train`: what an autoencoder must beat."""

    def patches(images: np.ndarray) -> np.ndarray:
        count, height, width, channels = images.shape
        cut = images.reshape(count, height // patch, patch, width // patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
        return cut.reshape(-1, patch * patch * channels).astype(np.float32)

    fitted = patches(train)
    mean = fitted.mean(0)
    _, vectors = np.linalg.eigh(np.cov((fitted - mean).T))
    basis = vectors[:, ::-1][:, :components].astype(np.float32)
    result = []
    for image in val:
        flat = patches(image[None]) - mean
        error = ((flat - flat @ basis @ basis.T) ** 2).mean()
        result.append(10 * math.log10(255**2 / max(float(error), 1e-6)))
    return np.array(result)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, images: np.ndarray, batch: int = 16) -> np.ndarray:
    """Images after one encode and decode, float32 (N, H, W, 3) on the 0..255 scale."""
    model.eval()
    parts = []
    for start in range(0, len(images), batch):
        restored = model(to_tensor(images[start : start + batch], str(model.device))).sample
        parts.append((restored.float().clamp(-1, 1).permute(0, 2, 3, 1) * 127.5 + 127.5).cpu().numpy())
    return np.concatenate(parts)


def build_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder whose residual branches start at zero, which learns several times sooner."""
    model = AutoencoderKL(**CONFIG)
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            torch.nn.init.zeros_(module.conv2.weight)
    return model


def read_autoencoder(folder: Path) -> AutoencoderKL:
    """The autoencoder in a folder, in float32; unlike `from_pretrained` it does not remember where it came from."""
    model = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return model


def build_critic() -> torch.nn.Module:
    """The patch discriminator of the decoder's last steps (Isola et al. 2017), MONAI's."""
    from monai.networks.nets import PatchDiscriminator

    return PatchDiscriminator(spatial_dims=2, channels=32, in_channels=3, num_layers_d=3, norm="INSTANCE")


def adversarial_losses(
    critic: torch.nn.Module, restored: torch.Tensor, real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least-squares losses: `restored` passing as real, the critic held still; and the critic telling it apart."""
    held = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    passed = torch.func.functional_call(critic, held, (restored,))[-1].float()
    on_real, on_restored = critic(real)[-1].float(), critic(restored.detach())[-1].float()
    return (passed - 1).square().mean(), 0.5 * ((on_real - 1).square().mean() + on_restored.square().mean())


def encode_moments(model: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Mean of the latent distribution; the log-variance half stays unused (its output is pinned small at export)."""
    return model.encode(images).latent_dist.mean


def train_autoencoder(
    images: np.ndarray,
    weights: np.ndarray,
    work: Path,
    *,
    steps: int,
    batch: int = 10,
    crop: int = 96,
    learning_rate: float = 5e-4,
    seed: int = 0,
    device: str = "cpu",
    save_every: int = 500,
    init: AutoencoderKL | None = None,
    decoder_only: bool = False,
    adversarial: float = 0.0,
    perceptual: float = 0.0,
) -> AutoencoderKL:
    """Train on crops for `steps` steps, going on from the checkpoint in `work` when there; returns the EMA model.

    Parameters
    ----------
    init
        Weights to start from when there is no checkpoint (one trained earlier).
    decoder_only
        Keep the encoder of `init`, and so all latents and the denoiser made for them, and train the decoder alone; the
        checkpoint is `decoder` instead of `autoencoder`.
    images
        uint8 (N, 256, 256, 3).
    weights
        Probability of drawing each image, (N,).
    adversarial
        Pull of a patch discriminator beside that of the error, measured as gradients at the last layer (Esser et al.
        2021). Some of it gives texture where the error alone gives its mean, which is blur; too much costs PSNR.
    perceptual
        Likewise the pull of `perceptual_loss`.
    work
        Folder for the checkpoint and `autoencoder.log.jsonl`.
    """
    torch.manual_seed(seed)
    name = "decoder" if decoder_only else "autoencoder"
    model = (copy.deepcopy(init) if init else build_autoencoder()).to(device).requires_grad_(True)
    if decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    ema = copy.deepcopy(model).requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    models: dict[str, torch.nn.Module] = {"model": model, "ema": ema}
    judged: list[torch.nn.Parameter] = []
    if adversarial:
        critic = models["critic"] = build_critic().to(device)
        judged = list(critic.parameters())
    optimizer = torch.optim.AdamW(
        [*trained, *judged], lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    # Of the critic and of the perceptual loss; kept in checkpoints, so that a break changes nothing.
    pulls = torch.nn.ParameterList([torch.zeros(2)]).requires_grad_(False)
    if adversarial or perceptual:
        models["pulls"] = pulls
    start, seconds = load_checkpoint(work / name, models, optimizer)
    pull = pulls[0]
    model.train()
    begun = time.time() - seconds
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=10)
    for step in bar:
        rng = np.random.default_rng([seed, step])
        for group in optimizer.param_groups:
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            group["lr"] = learning_rate * min(1, (step + 1) / 100) * cosine + 1e-5
        index = rng.choice(len(images), batch, p=weights)
        top, left = rng.integers(0, images.shape[1] - crop + 1, (2, batch))
        pixels = np.stack([images[i, t : t + crop, x : x + crop] for i, t, x in zip(index, top, left, strict=True)])
        target = to_tensor(pixels, device)
        draw = torch.Generator().manual_seed(step)
        with autocast(device):
            latents = encode_moments(model, target)
            noise = torch.randn(latents.shape, generator=draw).to(device)
            noisy = latents + LATENT_NOISE * latents.float().std() * noise
            restored = model.decode(noisy).sample.float()
        error = restored - target
        # The logarithm of each crop's squared error is its PSNR: smooth films count as much as busy CT. Absolute error
        # for edges; a weak pull keeps the latents near unit scale.
        squared = error.square().mean((1, 2, 3))
        loss = 0.02 * (squared + 2e-4).log().mean() + 0.5 * error.abs().mean()
        loss = loss + 1e-4 * latents.float().square().mean()
        plain, more = loss, {}
        with autocast(device):
            if adversarial:
                fooled, told_apart = adversarial_losses(critic, restored, target)
                more["adversarial"] = fooled
                loss = loss + told_apart
            if perceptual:
                more["perceptual"] = perceptual_loss(load_perceptual(device), restored, target)
        for other, value in more.items():
            place, weight = (0, adversarial) if other == "adversarial" else (1, perceptual)
            if (place or step >= CRITIC_AHEAD) and (not pull[place] or step % 10 == 0):
                last = model.decoder.conv_out.weight
                wanted, given = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (plain, value))
                now = weight * min(float(wanted / (given + 1e-6)), 100.0)
                pull[place] = 0.9 * pull[place] + 0.1 * now if pull[place] else now  # a few crops measure it roughly
            loss = loss + float(pull[place]) * value
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if judged:
            torch.nn.utils.clip_grad_norm_(judged, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        if (step + 1) % 20 == 0 or step + 1 == steps:
            record = {
                "step": step + 1,
                "loss": loss.item(),
                "psnr": -10 * (squared.detach() / 4).log10().mean().item(),
                **{other: value.item() for other, value in more.items()},
                "seconds": time.time() - begun,
            }
            log_line(work / f"{name}.log.jsonl", record)
            bar.set_postfix(loss=f"{record['loss']:.4f}")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_checkpoint(work / name, models, optimizer, step + 1, time.time() - begun)
    return ema.eval()


@torch.no_grad()
def rotate_latents(model: AutoencoderKL, latents: torch.Tensor) -> None:
    """Fold a PCA rotation and a mean shift into the 1x1 convolutions at the bottleneck, in place.

    Channels come out uncorrelated, centred and sorted by variance, and the decoder undoes it exactly: the diffusion
    model then meets tidy statistics while the class stays the stock one. The log-variance output is pinned to -20, so
    a sampled latent equals its mean.

    Parameters
    ----------
    latents
        Means of many images, (N, C, h, w), under the present weights.
    """
    channels = latents.shape[1]
    flat = latents.permute(0, 2, 3, 1).reshape(-1, channels).double()
    mean = flat.mean(0)
    _, vectors = torch.linalg.eigh(torch.cov(flat.T))
    rotation = vectors.flip(1).T  # rows: principal directions, largest variance first
    quant, post = model.quant_conv, model.post_quant_conv
    weight, bias = quant.weight[:channels, :, 0, 0].double(), quant.bias[:channels].double()
    quant.weight[:channels, :, 0, 0] = (rotation @ weight).to(quant.weight)
    quant.bias[:channels] = (rotation @ (bias - mean)).to(quant.bias)
    quant.weight[channels:] = 0
    quant.bias[channels:] = -20
    weight, bias = post.weight[:, :, 0, 0].double(), post.bias.double()
    post.weight[:, :, 0, 0] = (weight @ rotation.T).to(post.weight)
    post.bias[:] = (bias + weight @ mean).to(post.bias)
