"""The card (README.md) of an adapter: every number comes from its `training.json`."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData

from .run_folder import WEIGHTS

PLACE = "PATH_OR_HUB_ID"  # a push puts the repository's name here


def front_matter(record: dict[str, Any]) -> str:
    """The YAML block that the Hub reads."""
    prompt = record["samples"]["prompts"][0]
    data = ModelCardData(
        base_model=record["base"]["name"],
        base_model_relation="adapter",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license="other",
        tags=["text-to-image", "diffusers", "lora", "template:diffusion-lora", "medical", "synthetic"],
        instance_prompt=prompt,
        widget=[{"text": prompt, "output": {"url": "samples/after.jpg"}}],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def render_card(record: dict[str, Any]) -> str:
    """The whole card."""
    data, verdict, samples, copies = record["data"], record["verdict"], record["samples"], record["copies"]
    people = (
        f"{data['people']} people" if data["people_known"] else f"{data['people']} groups or files (people not known)"
    )
    licences = ", ".join(data["licences"]) or "not stated; whoever shares this adapter must know them"
    modality = record["modality"]
    called = f"modality={modality!r}, " if modality else ""
    lines = [
        front_matter(record),
        f"# {record['name']}",
        "",
        f"An adapter (LoRA, rank {record['config']['rank']}, {record['bytes'] / 1e6:.2f} MB) of the base "
        f"`{record['base']['name']}`" + (f" for {modality} images." if modality else "."),
        "Its images are **synthetic**. They are for research and teaching, never for diagnosis.",
        "",
        "```python",
        f'pipe.load_lora_weights("{PLACE}", weight_name="{WEIGHTS}", adapter_name={record["name"]!r})',
        f"pipe({samples['prompts'][0]!r}, {called}seed={samples['seeds'][0]})",
        "```",
        "",
        "## Did it help?",
        "",
        verdict["sentence"],
        "The images that this was measured on are of people that it was not trained on, but they also chose the step "
        "that was kept; a set that had no part in it is the stricter test."
        if data["validation_images"]
        else "No images were held out.",
        "",
        "| before (bare base) | after |",
        "|---|---|",
        "| ![before](samples/before.jpg) | ![after](samples/after.jpg) |",
        "",
        f"Prompts and seeds are in `training.json`; {samples['num_inference_steps']} steps, guidance "
        f"{samples['guidance_scale']}.",
        "",
        "## Data",
        "",
        f"- {data['images']} images of {people}: {data['training_images']} to train on, "
        f"{data['validation_images']} held out; {data['unreadable']} files could not be read",
        f"- licences: {licences}",
        *(f"- source: {source}" for source in data["attributions"]),
        "",
        "## Training",
        "",
        f"- {record['steps']} steps, {record['images_seen']} images seen; kept are the weights of step "
        f"{record['kept_step']}; ended because: {record['stop_reason']}",
        *_distillation(record["config"], samples["guidance_scale"]),
        *_rounds(record["config"]),
        *_matching(record["config"]),
        *_strength(record["config"]),
        *_init(record.get("init")),
        _losses(record["losses"]),
        f"- copies of training images among {copies['samples']} samples of the kept step: {copies['kept']} "
        f"(bare base: {copies['bare_base']})",
        f"- {record['seconds']} seconds on {record['hardware']['gpu'] or record['hardware']['device']}, "
        f"mixed precision: {record['hardware']['precision']}; {_memory(record['peak_memory'])}",
        f"- base model hash: `{record['base']['model_sha256']}`",
        "",
        "## Limits",
        "",
        "An adapter learns what its images share, their flaws and their bias too. The check for copies looks at few "
        "samples and finds only near copies: it is no proof of privacy.",
        "",
    ]
    return "\n".join(lines)


def _distillation(config: dict[str, Any], default: float) -> list[str]:
    if (guidance := config.get("distil_guidance")) is None:
        return []
    return [
        f"- taught to draw at guidance {default:g} what its start drew at {guidance:g} (guidance distillation, Meng et "
        "al. 2023), instead of denoising; the losses here are of that, and say nothing of how real images look"
    ]


def _rounds(config: dict[str, Any]) -> list[str]:
    if not config.get("rounds"):
        return []
    return [
        f"- of them the last {config['rounds']} rounds against its own samples (Direct Discriminative Optimization, "
        f"Zheng et al. 2025): {config['round_samples']} samples and {config['round_steps']} steps each"
    ]


def _matching(config: dict[str, Any]) -> list[str]:
    if not config.get("match_steps"):
        return []
    return [
        f"- of them the last {config['match_steps']} so that drawn images look, as a set, like the training images to "
        "networks of the family EfficientNet-Lite (maximum mean discrepancy, Gretton et al. 2012); a KID by a relative "
        "of them, as the one above is, flatters them"
    ]


def _strength(config: dict[str, Any]) -> list[str]:
    strength = config.get("strength", 1.0)
    return [] if strength == 1 else [f"- kept at strength {strength:g}: what was learnt is in the file times that"]


def _init(init: dict[str, Any] | None) -> list[str]:
    if not init:
        return []
    return [f"- begun from the adapter {init['name'] or 'without a name'} (`{init['adapter_sha256']}`)"]


def _losses(losses: dict[str, Any]) -> str:
    parts = [
        f"{name} loss {ends['first']:.4f} at first, {ends['best']:.4f} at best, {ends['last']:.4f} at last"
        for name, ends in losses.items()
        if ends
    ]
    return "- " + "; ".join(parts)


def _memory(peaks: dict[str, int]) -> str:
    parts = [f"{value / 1e9:.1f} GB of {'memory' if name == 'main' else 'GPU memory'}" for name, value in peaks.items()]
    return "at most " + " and ".join(parts) if parts else "memory not measured"
