"""What the shipped adapters change: each against the bare base, on unseen images, same prompts and seeds.

Two measures. KID against the val split, without and with the adapter, and how far it falls; on features of a second
network too, where one is named. And a judge, trained on real images only, that says how many of the generated images
it takes for what the adapter was made for.

Read the judge with care where it tells COVID-19 films from other films of the chest: the ones all come from one source
and the others from three more, so that it may go by a hospital's cropping, contrast and lettering rather than by
disease (the pack even holds a few films without COVID-19). That is why the share that it takes for *any* chest X-ray
stands beside. The intervals redraw images, not people: where a few people gave many val images (`val_groups`), they
are too narrow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lora.base_data import PACKS, files_of, load_images, read_rows
from lora.data import squared
from pipeline.adapter_files import Adapter, check_adapter, read_adapter
from pipeline.adapter_names import WEIGHT_NAME, shipped_adapters
from pipeline.batch_maker import load_pipeline
from pipeline.dicom_input import read_image

from .feature_networks import feature_network
from .features import FeatureNetwork, extract_features
from .fidelity import DRAWS, MINIMUM_COUNT, Distance, kernel_distance
from .images import SIZE, count_by, generate, spread
from .judge import (
    JUDGE_SIZE,
    MODALITY_ROWS,
    TASKS,
    Judge,
    fit_judge,
    kind_of,
    score,
    wilson_interval,
)

NEW_PACKS = {"nuclei_dsb2018": "nuclei", "cxr_covid": "covid-chest-xray"}  # never shown to the base
ADAPTERS = tuple(dict.fromkeys([*PACKS.values(), *NEW_PACKS.values()]))
CONTRAST = {"nuclei": "stretch"}  # as it was trained; the others take pictures as they are
TARGET_KNOWN, TARGET_NEW = 0.3, 0.6  # fall of KID that is wanted where the base knows the modality, and where not
SEED_STRIDE = 10_000  # image i of a run has seed * SEED_STRIDE + i: no two runs share their noise
CLASSES = (*TASKS["modality"].shares, *NEW_PACKS.values())
CHEST_XRAYS = ("chest-xray", "covid-chest-xray")


def adapter_rows(name: str, data: str | Path, split: str) -> list[dict[str, str]]:
    """Rows of the packs that show what an adapter was made for.

    Raises
    ------
    ValueError
        The folder holds no rows of that split.
    """
    packs = [pack for pack, taught in {**PACKS, **NEW_PACKS}.items() if taught == name]
    rows = read_rows(Path(data), packs, split)
    if not rows:
        raise ValueError(f"`data` has no {split!r} rows for {name!r}")
    return rows


def class_of(row: dict[str, str]) -> str:
    """Answer that the judge should give to a row: one of `CLASSES`."""
    return NEW_PACKS.get(row["pack"]) or kind_of(row)


def real_images(name: str, rows: Sequence[dict[str, str]], cache: str | Path | None = None) -> np.ndarray:
    """Pictures of rows of one adapter's packs, uint8 (N, 256, 256, 3), as the adapter is trained on them."""
    if name not in CONTRAST:
        return load_images(rows, SIZE, Path(cache) if cache else None)
    bar = tqdm(rows, desc=f"reading images, {name}", mininterval=5)
    return np.stack([squared(read_image(row["path"]).pixels, SIZE, CONTRAST[name]) for row in bar])


def find_adapters(names: Sequence[str] | None) -> dict[str, Path]:
    """Folders of adapters by name: of names of shipped ones, or of folders called like them; None for all shipped.

    Raises
    ------
    ValueError
        One is unknown, has no weights or comes twice, or none is shipped.
    """
    shipped = shipped_adapters()
    if names is None:
        names = [name for name in ADAPTERS if name in shipped]
        if not names:
            raise ValueError(f"`adapters` is not given, and no folder of lora/ holds the weights of {_listed()}")
    found: dict[str, Path] = {}
    for text in names:
        folder = shipped.get(text, Path(text))
        if folder.name not in ADAPTERS:
            raise ValueError(f"`adapters` has {text!r}: allowed are {_listed()}, and folders of these names")
        if not (folder / WEIGHT_NAME).is_file():
            raise ValueError(f"`adapters` has {text!r}: there is no {WEIGHT_NAME}")
        if folder.name in found:
            raise ValueError(f"`adapters` has {folder.name!r} twice: each may be named once")
        found[folder.name] = folder
    return found


def _listed() -> str:
    return ", ".join(ADAPTERS)


# The judge


def train_judge(data: str | Path, *, seed: int = 0, cache: str | Path | None = None) -> Judge:
    """Train the judge of `CLASSES` on the train split, or take it from `cache`.

    Parameters
    ----------
    data
        Folder with the packs, all of them.
    seed
        Of the augmentations and of which rows of a large pack are taken.
    cache
        Folder for the trained judge.
    """
    chosen: dict[str, list[dict[str, str]]] = {}  # rows by adapter
    for name in ADAPTERS:
        rows = adapter_rows(name, data, "train")
        for pack, size in count_by(rows, "pack").items():
            chosen.setdefault(name, []).extend(spread(rows, "pack", {pack: 1}, min(size, MODALITY_ROWS), seed))
    used = [[*files_of(rows), [class_of(row) for row in rows]] for rows in chosen.values()]

    def parts() -> Iterator[tuple[np.ndarray, list[int]]]:
        for name, rows in chosen.items():
            yield real_images(name, rows), [CLASSES.index(class_of(row)) for row in rows]

    return fit_judge("adapters", CLASSES, parts(), [CONTRAST, used], seed=seed, cache=cache)


def recognised(name: str, predicted: np.ndarray) -> dict[str, Any]:
    """How many of an adapter's images the judge takes for what they should show.

    Parameters
    ----------
    name
        The adapter. Images of "ct" are recognised as CT of the chest or of the head.
    predicted
        Index into `CLASSES` of each image.
    """
    own = [kind for kind in CLASSES if kind == name or kind.startswith(f"{name}-")]
    seen = [CLASSES[index] for index in predicted]
    result = {"recognised": _share(seen, own)}
    if name in CHEST_XRAYS:
        result["any_chest_xray"] = _share(seen, CHEST_XRAYS)
    return {"count": len(seen), **result, "seen_as": {kind: seen.count(kind) for kind in CLASSES if kind in seen}}


def _share(seen: Sequence[str], wanted: Collection[str]) -> dict[str, float]:
    right = sum(kind in wanted for kind in seen)
    low, high = wilson_interval(right, len(seen))
    return {"share": right / len(seen), "low": low, "high": high}


# KID


def compare(without: Distance, with_adapter: Distance) -> dict[str, Any]:
    """Two KIDs, the relative fall from one to the other (None where there is none to fall from), do they overlap."""
    return {
        "without": asdict(without),
        "with": asdict(with_adapter),
        "fall": 1 - with_adapter.kid / without.kid if without.kid > 0 else None,
        "intervals_overlap": with_adapter.low <= without.high and without.low <= with_adapter.high,
    }


def compare_features(
    without: dict[int, np.ndarray],
    with_adapter: dict[int, np.ndarray],
    real: np.ndarray,
    target: float,
    packs: dict[int, list[str]] | None = None,
    real_packs: list[str] | None = None,
) -> dict[str, Any]:
    """KID without and with an adapter: over all runs, and run by run.

    Parameters
    ----------
    without, with_adapter
        Features of the generated images, by seed.
    real
        Features of the val images.
    target
        Fall of KID that is wanted. It is met where the KID over all runs falls so far and the intervals do not overlap.
    packs, real_packs
        Of the prompts, by seed, and of the val images. So many are of each by design, which the intervals keep to.
    """

    def distance(side: dict[int, np.ndarray], seeds: Sequence[int]) -> Distance:
        groups = None if packs is None else [pack for s in seeds for pack in packs[s]]
        features = np.concatenate([side[s] for s in seeds])
        return kernel_distance(features, real, groups=groups, real_groups=real_packs, seed=seeds[0])

    sides = (without, with_adapter)
    by_seed = {str(s): compare(*(distance(side, [s]) for side in sides)) for s in without}
    pooled = compare(*(distance(side, list(without)) for side in sides))
    met = pooled["fall"] is not None and pooled["fall"] >= target and not pooled["intervals_overlap"]
    return {**pooled, "target": target, "met": met, "by_seed": by_seed}


# The whole


def compare_adapters(
    data: str | Path,
    *,
    adapters: Sequence[str] | None = None,
    count: int = 60,
    seeds: Sequence[int] = (0, 1, 2),
    model: str | Path = "pipeline",
    pipe: Any = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 4,
    networks: Sequence[str] = ("efficientnet-lite0",),
    cache: str | Path | None = None,
    earlier: str | Path | None = None,
) -> dict[str, Any]:
    """Measure adapters against the bare base.

    Parameters
    ----------
    data
        Folder with the packs.
    adapters
        Names of shipped adapters, or folders called like them; None for all that are shipped.
    count
        Images a seed, without and with each adapter, from the plain captions of val rows drawn at random with the packs
        in proportion.
    seeds
        Of the runs: each draws its own rows, and its image i has `seed` * 10000 + i.
    model, pipe
        Folder or Hub id of the pipeline, or the pipeline itself, without adapters.
    steps, guidance, batch, cache
        As for `generate`.
    networks
        Names of feature networks, see `feature_network`; what is reached is told by the first.
    earlier
        JSON of an earlier run: what it holds of other adapters stays, see `kept_results`.

    Raises
    ------
    ValueError
        Too few images, seeds that cannot be, an unknown adapter or one that does not fit the model.
    """
    if not MINIMUM_COUNT <= count <= SEED_STRIDE:
        raise ValueError(f"`count` is {count}: allowed are {MINIMUM_COUNT} (KID needs as many) to {SEED_STRIDE} images")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` are {list(seeds)}: allowed are different whole numbers from 0, at least one")
    folders = find_adapters(adapters)
    val = {name: adapter_rows(name, data, "val") for name in ADAPTERS}
    drawn = {}
    for name in folders:
        if len(val[name]) < MINIMUM_COUNT:
            raise ValueError(
                f"`data` holds {len(val[name])} val images of {name!r}: KID needs at least {MINIMUM_COUNT}"
            )
        if lone := [pack for pack, found in count_by(val[name], "pack").items() if found == 1]:
            raise ValueError(f"`data` holds one val image of {', '.join(lone)}: a pack needs two, to make a pair")
        drawn[name] = _draw(val[name], count, seeds)
    pipe = pipe if pipe is not None else load_pipeline(model)
    if pipe.get_list_adapters():
        raise ValueError("`pipe` has adapters loaded: the bare base is wanted; call `unload_lora_weights()`")
    files = {name: read_adapter(folder).named(name) for name, folder in folders.items()}
    for adapter in files.values():  # all before hours of work
        check_adapter(adapter, pipe.unet, pipe.text_encoder)
    defaults = {
        "model_sha256": pipe.model_sha256,
        "num_inference_steps": pipe.config.default_num_inference_steps if steps is None else steps,
        "guidance_scale": pipe.config.default_guidance_scale if guidance is None else guidance,
    }
    looks = [feature_network(name, data=data, cache=cache) for name in networks]
    described = {look.name: look.description for look in looks[1:]}
    results = kept_results(earlier, folders, defaults, described) if earlier and Path(earlier).is_file() else {}
    kept = sorted(results)
    judge = train_judge(data, cache=cache)
    seen = {name: judge.predict(real_images(name, rows, cache)) for name, rows in val.items()}
    answers = [CLASSES.index(class_of(row)) for rows in val.values() for row in rows]
    how = {"steps": steps, "guidance": guidance, "batch": batch, "cache": cache}
    for name, adapter in files.items():
        print(f"adapter {name}", file=sys.stderr)
        rows = {"val": val[name], "train": adapter_rows(name, data, "train")}
        results[name] = _measure(pipe, adapter, folders[name], rows, drawn[name], judge, looks, how)
        results[name]["judge"]["real_val"] = recognised(name, seen[name])
    return {
        "what": "adapters",
        "measure": "KID without and with each adapter, unbiased, cubic polynomial kernel; 95 % bootstrap intervals, "
        "redrawn within each pack",
        "network": looks[0].description,
        "judge": {
            "what": f"linear on EfficientNet-Lite0 features at {JUDGE_SIZE} px, trained on the real train split only",
            "real_val": score(answers, np.concatenate(list(seen.values())), CLASSES),
        },
        "captions": "plain",
        "seeds": list(seeds),
        "counts": {"images_a_seed": count, "bootstrap": DRAWS},
        "of_an_earlier_run": kept,
        "adapters": {name: results[name] for name in ADAPTERS if name in results},
    }


def kept_results(
    earlier: str | Path, measured: Collection[str], settings: dict[str, Any], networks: dict[str, str]
) -> dict[str, Any]:
    """What an earlier run found of adapters that are not measured now, by name; each says how many images it is of.

    Parameters
    ----------
    earlier
        Its JSON.
    measured
        Names of those that are.
    settings
        What must be equal of each: `model_sha256`, `num_inference_steps` and `guidance_scale`.
    networks
        So must be the descriptions of the networks beside the first, by name: one trained anew sees otherwise.

    Raises
    ------
    ValueError
        It was measured otherwise, or the weights of a shipped adapter are no longer those that were measured.
    """
    found = json.loads(Path(earlier).read_text(encoding="utf-8"))
    shipped, results = shipped_adapters(), {}
    for name, one in found["adapters"].items():
        if name in measured:
            continue
        then, now = {key: one["settings"][key] for key in settings}, dict(settings)
        if name in shipped:
            then["adapter"], now["adapter"] = one["settings"]["adapters"][0][1], read_adapter(shipped[name]).sha256
        for network, description in networks.items():
            then[network] = one["networks"].get(network, {}).get("network")
            now[network] = description
        if changed := [key for key in now if now[key] != then[key]]:
            raise ValueError(
                f"`keep`: {Path(earlier).name} has {name!r} with another {', '.join(changed)}; measure it again too"
            )
        results[name] = one
    return results


def _draw(rows: list[dict[str, str]], count: int, seeds: Sequence[int]) -> dict[int, list[dict[str, str]]]:
    """Rows of each run, packs in proportion; ValueError where a run has a single one of a pack, which makes no pair."""
    drawn = {s: spread(rows, "pack", count_by(rows, "pack"), count, s) for s in seeds}
    lone = {pack for some in drawn.values() for pack, found in count_by(some, "pack").items() if found == 1}
    if lone:
        raise ValueError(f"`count` is {count}: that is one image of {', '.join(sorted(lone))}, and a pack needs two")
    return drawn


def _measure(
    pipe: Any,
    adapter: Adapter,
    folder: Path,
    rows: dict[str, list[dict[str, str]]],
    drawn: dict[int, list[dict[str, str]]],
    judge: Judge,
    networks: Sequence[FeatureNetwork],
    how: dict[str, Any],
) -> dict[str, Any]:
    """Measure one adapter; the pipeline is bare before and after."""
    name, shares, seeds = adapter.name, count_by(rows["val"], "pack"), list(drawn)
    packs, val_packs = {s: [row["pack"] for row in some] for s, some in drawn.items()}, [r["pack"] for r in rows["val"]]

    def runs() -> tuple[dict[int, np.ndarray], dict[str, Any]]:
        made = {
            s: generate(pipe, [row["text"] for row in some], seed=s * SEED_STRIDE, modality=adapter.modality, **how)
            for s, some in drawn.items()
        }
        settings = {key: value for key, value in made[seeds[0]][1].items() if key != "seed"}
        return {s: images for s, (images, _) in made.items()}, settings

    images: dict[str, dict[int, np.ndarray]] = {}
    images["without"], _ = runs()
    pipe.load_lora_weights(folder, adapter_name=name)
    try:
        images["with"], settings = runs()
    finally:
        pipe.unload_lora_weights()
    sample = spread(rows["train"], "pack", shares, min(sum(map(len, drawn.values())), len(rows["train"])), seeds[0])
    sample_packs = [row["pack"] for row in sample]
    real = [real_images(name, some, how["cache"]) for some in (rows["val"], sample)]
    target = TARGET_NEW if name in NEW_PACKS.values() else TARGET_KNOWN

    def distances(network: FeatureNetwork) -> dict[str, Any]:
        val, floor = (extract_features(some, network=network, description=f"features, {name}") for some in real)
        without, with_adapter = (
            {s: extract_features(some, network=network, progress=False) for s, some in by_seed.items()}
            for by_seed in images.values()
        )
        found = compare_features(without, with_adapter, val, target, packs, val_packs)
        of_sample = kernel_distance(floor, val, groups=sample_packs, real_groups=val_packs, seed=seeds[0])
        return {**found, "floor": asdict(of_sample)}

    kid, *others = [distances(network) for network in networks]
    made_for = adapter.metadata.get("base_model_sha256")
    return {
        "contrast": CONTRAST.get(name, "none"),
        "made_for_this_base": made_for == pipe.model_sha256 if made_for else None,
        "settings": settings,
        "counts": {
            "val": len(rows["val"]),
            "val_groups": len({(row["pack"], row.get("group_id") or row["file_name"]) for row in rows["val"]}),
            "val_by_pack": shares,
            "train_sample": len(sample),
        },
        "kid": kid,
        "networks": {
            network.name: {"network": network.description, "kid": other}
            for network, other in zip(networks[1:], others, strict=True)
        },
        "judge": {
            side: recognised(name, judge.predict(np.concatenate(list(by_seed.values()))))
            for side, by_seed in images.items()
        },
    }
