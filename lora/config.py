"""The settings of an adapter's training, each with its help text, and command line options made from them."""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.dicom_profiles import MODALITY_NAMES

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "all": (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv_in", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv", "conv_out"),
    ),
}
PRECISIONS = ("no", "bf16", "fp16")
CONTRASTS = ("none", "stretch")


def _option(help_text: str, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    return field(default=default, metadata={"help": help_text, **more})


@dataclass(frozen=True)
class AdapterConfig:
    """Everything that decides how an adapter comes out; each field is a command line option.

    The defaults suit a hundred images of one kind, two cores and the embedded base: some fifteen minutes, under 4 GB.
    """

    data: tuple[str, ...] = _option(
        "folders of DICOM files or pictures, imagefolders (metadata.csv), saved data sets, or ORG/NAME on the Hub"
    )
    out: Path = _option("folder of the adapter, such as lora/brain-mri; its last part is the adapter's name")
    model: str = _option("base to adapt: a folder or Hub id, embedded or any Stable Diffusion 1.x/2.x", "pipeline")
    init: str | None = _option(
        "adapter to go on from, of the same `target` and scale and at least this `rank` (a higher one is cut down): a "
        "folder, a .safetensors file or a Hub id",
        None,
    )
    modality: str | None = _option("what the adapter is for, such as brain-mri; guessed from the captions", None)
    rank: int = _option("rank of the low-rank matrices: size and freedom of the adapter", 8)
    alpha: float | None = _option("scale of the adapter, over the rank; by default the rank, so that it is 1", None)
    target: str = _option(
        "layers that are adapted: attention alone (smaller), or also convolutions and feed-forward layers",
        "all",
        choices=tuple(TARGETS),
    )
    learning_rate: float = _option("peak learning rate", 1e-3)
    steps: int = _option("optimizer steps at most; training may stop early", 1500)
    batch: int = _option("images a step, over all processes", 8)
    accumulate: int = _option("batches that are summed up to one step", 1)
    gradient_checkpointing: bool = _option("compute activations twice to save memory", False)
    mixed_precision: str | None = _option("by default bf16 where the device has it, else no", None, choices=PRECISIONS)
    ema_decay: float = _option("decay of the moving average of the weights, which is what is kept", 0.99)
    noise_shift: float | None = _option(
        "rectified flow: below 1 favours levels of little noise, where detail is learnt; by default 2 at 256 pixels",
        None,
    )
    distil_guidance: float | None = _option(
        "instead of denoising, in `steps` and beside matching, learn to draw at the default guidance what the start "
        "(`init`, or the bare base) draws at this one; lower gives more varied images (Meng et al. 2023)",
        None,
    )
    rounds: int = _option(
        "after `steps`, so many rounds against its own samples: sharper images (Zheng et al. 2025); 0 for none", 0
    )
    round_steps: int = _option("optimizer steps of a round; each takes as many own samples as images", 150)
    round_samples: int = _option("samples that a round draws first", 160)
    round_learning_rate: float = _option("peak learning rate of a round", 3e-4)
    match_steps: int = _option(
        "at last, so many steps that make drawn images look, as a set, like the training images to a network: "
        "sharper and closer in kind; 0 for none",
        0,
    )
    match_learning_rate: float = _option("peak learning rate of these steps", 3e-4)
    strength: float = _option(
        "weight to keep the finished adapter at, as `--adapter NAME:0.7` sets it: below 1 leaves more of the base",
        1.0,
    )
    caption_drop: float = _option("share of images shown without caption, for classifier-free guidance", 0.1)
    caption_variants: int = _option("wordings of each caption, kept in memory", 6)
    validate_every: int = _option("steps between validations, each with a sample sheet", 150)
    patience: int = _option("stop when so many validations in a row did not improve", 4)
    sample_prompts: tuple[str, ...] = _option("prompts of the sample sheets; by default captions of the data", ())
    sample_count: int = _option("images on a sample sheet", 8)
    validation_share: float = _option("share of images held out, people whole", 0.2)
    contrast: str = _option("stretch: each image's range to black and white", "none", choices=CONTRASTS)
    default_caption: str | None = _option("caption of pictures that have none", None)
    attribution_column: str | None = _option(
        "column whose texts the card names as sources, such as source; by default none", None
    )
    frames_per_file: int = _option("frames taken of a multi-frame file, evenly spread", 8)
    image_column: str = _option("column of the images in a data set", "image")
    caption_column: str = _option("column of the captions", "text")
    group_column: str | None = _option("column of the person or group; by default group_id or patient_id", None)
    most: int | None = _option("use at most so many images, drawn at random", None)
    seed: int = _option("seed of all random draws", 0)
    show_names: bool = _option("print names of unreadable files; they may hold patients' names", False)
    save_every: int = _option("steps between checkpoints", 50)
    verdict_count: int = _option("images drawn before and after for the verdict; 0 leaves the KID out", 50)
    cpu: bool = _option("use the CPU even where there is a GPU", False)
    overwrite: bool = _option("replace a finished adapter, or a checkpoint of other settings", False)
    push_to_hub: str | None = _option("push the finished adapter to this Hub repository, ORG/NAME", None)
    private: bool | None = _option("make that repository private, or public; by default as the account's are", None)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        if not self.data:
            raise ValueError("`data` is empty; give at least one folder or data set")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.out.resolve().name):
            raise ValueError(
                f"`out` ends in {self.out.resolve().name!r}, which names the adapter; allowed are up to 64 letters, "
                "digits, hyphens and underscores"
            )
        if self.modality is not None and self.modality not in MODALITY_NAMES:
            raise ValueError(f"`modality` is {self.modality!r}; allowed are {', '.join(MODALITY_NAMES)}")
        for name, allowed in (("target", tuple(TARGETS)), ("mixed_precision", PRECISIONS), ("contrast", CONTRASTS)):
            value = getattr(self, name)
            if value not in allowed and (name != "mixed_precision" or value is not None):
                raise ValueError(f"`{name}` is {value!r}; allowed are {', '.join(map(repr, allowed))}")
        for name in ("rank", "batch", "accumulate", "caption_variants", "validate_every", "patience"):
            self._at_least(name, 1)
        for name in ("sample_count", "frames_per_file", "save_every", "round_steps", "round_samples"):
            self._at_least(name, 1)
        for name in ("seed", "verdict_count", "rounds", "match_steps"):
            self._at_least(name, 0)
        self._at_least("steps", 0 if self.rounds or self.match_steps else 1)
        if self.most is not None:
            self._at_least("most", 2)
        if self.init is not None and Path(self.init).resolve() == self.out.resolve():
            raise ValueError(f"`init` is {self.init!r}, which is `out` too; allowed is another folder")
        for name, low, high in (("caption_drop", 0, 1), ("ema_decay", 0, 1), ("validation_share", 0, 1)):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; allowed is from {low} to below {high}")
        rates = ("learning_rate", "round_learning_rate", "match_learning_rate")
        for name in (*rates, "alpha", "noise_shift", "distil_guidance", "strength"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` is {value!r}; allowed is a number above 0")
        if self.push_to_hub is not None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.push_to_hub):
            raise ValueError(
                f"`push_to_hub` is {self.push_to_hub!r}; allowed is the name of a Hub repository, ORG/NAME"
            )
        if self.private is not None and self.push_to_hub is None:
            raise ValueError(f"`private` is {self.private}, but `push_to_hub` names no repository")
        for source in self.data:
            if Path(source).is_dir() and self.out.resolve().is_relative_to(Path(source).resolve()):
                raise ValueError(
                    f"`out` is {str(self.out)!r}, inside a folder of `data`, where its samples would be read as data"
                )

    def _at_least(self, name: str, low: int) -> None:
        if getattr(self, name) < low:
            raise ValueError(f"`{name}` is {getattr(self, name)!r}; allowed is a whole number of at least {low}")

    @property
    def name(self) -> str:
        """Name of the adapter."""
        return self.out.resolve().name

    @property
    def scale(self) -> float:
        """LoRA's alpha, a whole number where it is one."""
        alpha = self.rank if self.alpha is None else self.alpha
        return int(alpha) if alpha == int(alpha) else alpha

    def public(self) -> dict[str, Any]:
        """The settings without the paths: what may be written down."""
        paths = {"data", "out", "model", "init"}
        hidden = {*paths, "overwrite", "show_names", "cpu", "save_every", "push_to_hub", "private"}
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in hidden}
        return settings | {"alpha": self.scale, "sample_prompts": list(self.sample_prompts)}


def add_options(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Add an option for each field of a dataclass: type and default are the field's, the help is in its metadata.

    Knows str, int, float, Path and bool, these or None, and tuples of them.
    """
    hints = typing.get_type_hints(settings)
    for item in dataclasses.fields(settings):
        kind = hints[item.name]
        required = item.default is dataclasses.MISSING
        options: dict[str, Any] = {"required": required, "help": item.metadata["help"]}
        if not required:
            options["default"] = item.default
            if item.default not in (None, (), False):
                options["help"] += " (default: %(default)s)"
        if isinstance(kind, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        if typing.get_origin(kind) is tuple:
            kind, options["nargs"] = typing.get_args(kind)[0], "+"
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = kind
            options["metavar"] = item.name.rpartition("_")[2].upper()
        if "choices" in item.metadata:
            options["choices"] = item.metadata["choices"]
            del options["metavar"]
        parser.add_argument(f"--{item.name.replace('_', '-')}", **options)


def parse_config(arguments: list[str] | None, description: str) -> AdapterConfig:
    """Read the command line.

    Raises
    ------
    ValueError
        A value is out of its range. (What argparse itself refuses ends the program with status 2.)
    """
    parser = argparse.ArgumentParser("python -m lora.train", description=description)
    add_options(parser, AdapterConfig)
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    for key, value in options.items():
        if isinstance(value, list):  # as argparse gives several values
            options[key] = tuple(value)
    return AdapterConfig(**options)
