"""A contact sheet of generated images, to be looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.batch_maker import load_pipeline

from .classify import draw_prompts
from .images import generate
from .judge import TASKS

CAPTION_LINES = 4
TEXT_SIZE = 12
GAP = 6


def draw_sheet(images: np.ndarray, captions: Sequence[str], columns: int, tile: int = 256) -> Image.Image:
    """Lay out uint8 images (N, H, W, 3) in rows of `columns`, each with its caption below where there is one."""
    font = ImageFont.load_default(TEXT_SIZE)
    strip = CAPTION_LINES * (TEXT_SIZE + 3) if any(captions) else 0
    rows = -(-len(images) // columns)
    step_x, step_y = tile + GAP, tile + strip + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    letters = int(tile / font.getlength("n"))
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + index % columns * step_x, GAP + index // columns * step_y
        sheet.paste(Image.fromarray(image).resize((tile, tile), Image.Resampling.BICUBIC), (left, top))
        lines = textwrap.wrap(caption, letters, max_lines=CAPTION_LINES, placeholder=" ...")
        draw.multiline_text((left, top + tile + 1), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet


def make_sheet(
    data: str | Path,
    out: str | Path,
    *,
    rows: int = 5,
    columns: int = 8,
    blind: bool = False,
    varied: bool = False,
    model: str | Path = "pipeline",
    pipe: Any = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Generate rows x columns images from captions of val rows and write them as one PNG.

    Parameters
    ----------
    data
        Folder with the packs.
    out
        The PNG or, by its suffix, JPEG or WebP.
    rows, columns
        Of the sheet. The modalities share the tiles evenly and stand in order.
    blind
        Leave the captions out and shuffle the tiles, for a stranger to name; the answers are in what is returned.
    varied
        Word the captions anew instead of taking the packs' plain text.
    model, pipe, seed, steps, guidance, batch, cache
        As for `fidelity`.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"`rows` and `columns` are {rows} and {columns}: numbers from 1 are allowed")
    prompts, answers = draw_prompts("modality", data, rows * columns, seed=seed, varied=varied)
    kinds = list(TASKS["modality"].shares)
    order = np.argsort([kinds.index(answer) for answer in answers], kind="stable")
    if blind:
        order = np.random.default_rng(seed).permutation(len(prompts))
    prompts, answers = [prompts[i] for i in order], [answers[i] for i in order]
    pipe = pipe if pipe is not None else load_pipeline(model)
    images, settings = generate(pipe, prompts, seed=seed, steps=steps, guidance=guidance, batch=batch, cache=cache)
    sheet = draw_sheet(images, [""] * len(prompts) if blind else prompts, columns)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    # These two are a tenth of the size, and small enough to be kept in a repository.
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(out.suffix.lower(), "PNG")
    sheet.save(part, format=kind, optimize=True, progressive=True, quality=64)
    part.replace(out)
    tiles = [{"prompt": prompt, "modality": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    return {"what": "sheet", "seed": seed, "counts": {"tiles": len(tiles)}, "settings": settings, "tiles": tiles}
