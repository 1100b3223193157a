"""Cards: front matter that the Hub reads, and a text for people from the templates beside this file.

A template takes each number with `number(file, key)`; one that is not there fails the build. What is not measured yet
(its result file does not exist) is said in words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, DatasetCardData, EvalResult, ModelCard, ModelCardData, metadata_load
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .facts import Facts
from .samples import PARQUET

TRAINING = "pipeline/training.json"
VOLUME_TRAINING = "./training.json"
ADAPTER_RESULTS = "evaluation/results/adapters.json"
SPEED = "evaluation/results/speed.json"
FAITHFULNESS = "evaluation/results/faithfulness.json"
KID_NAME = "KID (EfficientNet-Lite0) against unseen real images"
CARD_TAGS = ["medical", "dicom", "radiology", "synthetic"]
# Data licences under which weights may be given on as Apache-2.0; any other and the card says "other".
FREE = re.compile(r"(CC0|CC BY( \d\.\d)?|MIT|public domain|NIH unrestricted use with attribution)( \(.*\))?")

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  Markdown, and no text of a stranger
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": True}


@dataclass(frozen=True)
class Names:
    """What everything is called on the Hub, the namespace apart; `adapters` by their own names."""

    namespace: str
    model: str
    adapters: dict[str, str]
    space: str
    samples: str
    volume: str | None = None

    def id(self, name: str) -> str:
        """Give the Hub id of a repository."""
        return f"{self.namespace}/{name}"


def modalities(facts: Facts) -> list[str]:
    """The modalities that the base was trained on."""
    return list(dict.fromkeys(facts.value(TRAINING, "packs.*.modality")))


def fidelity_file(modality: str) -> str:
    """The result file of the base's fidelity."""
    return f"evaluation/results/fidelity-{modality}.json"


def stale_results(facts: Facts) -> list[str]:
    """Result files of the base that were measured with another model than drew the samples in the card's folder."""
    drew = facts.value("./samples/samples.json", "settings.model_sha256")
    files = [fidelity_file(name) for name in modalities(facts)] + [FAITHFULNESS, SPEED]
    return [file for file in files if facts.value(file, "settings.model_sha256") != drew]


def model_card(facts: Facts, hub: Names) -> str:
    """Card of the base."""
    names = modalities(facts)
    licences = [licence for pack in facts.value(TRAINING, "packs.*.licence") for licence in pack]
    data = ModelCardData(
        **_licence(licences, hub.id(hub.model)),
        language="en",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "image-to-image", "diffusers", *CARD_TAGS],
        metrics=["kid"],
        widget=_widget(facts),
        model_name=hub.model,
        eval_results=[_kid_result(facts, name, fidelity_file(name), "synthetic.kid") for name in names],
    )
    return _render("model.md", data, facts, hub, modalities=names, of="")


def adapter_card(facts: Facts, hub: Names, name: str) -> str:
    """Card of an adapter."""
    record = f"lora/{name}/training.json"
    tags = ["text-to-image", "diffusers", "lora", "template:diffusion-lora", *CARD_TAGS]
    data = ModelCardData(
        **_licence(facts.value(record, "data.licences"), hub.id(hub.adapters[name])),
        language="en",
        base_model=hub.id(hub.model),
        base_model_relation="adapter",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
        metrics=["kid"],
        instance_prompt=facts.value("./samples/samples.json", "images.0.prompt"),
        widget=_widget(facts),
        model_name=hub.adapters[name],
        eval_results=[_kid_result(facts, name, ADAPTER_RESULTS, f"adapters.{name}.kid.with.kid")],
    )
    return _render("adapter.md", data, facts, hub, name=name, record=record, of=f"-{name}")


def volume_card(facts: Facts, hub: Names) -> str:
    """Card of the volume model."""
    licences = [licence for pack in facts.value(VOLUME_TRAINING, "packs.*.licence") for licence in pack]
    assert hub.volume is not None
    data = ModelCardData(
        **_licence(licences, hub.id(hub.volume)),
        language="en",
        library_name="diffusers",
        pipeline_tag="text-to-3d",
        tags=["text-to-3d", "diffusers", "segmentation", "mri", *CARD_TAGS],
        widget=_widget(facts),
    )
    return _render("volume.md", data, facts, hub, training=VOLUME_TRAINING)


def samples_card(facts: Facts, hub: Names) -> str:
    """Card of the data set."""
    texts = ("prompt", "recipe", "modality", "sop_instance_uid")
    features = [{"name": "image", "dtype": "image"}, {"name": "dicom", "dtype": "binary"}]
    features += [{"name": name, "dtype": "string"} for name in texts]
    data = DatasetCardData(
        license="apache-2.0",
        language="en",
        pretty_name="Synthetic DICOM samples",
        task_categories=["text-to-image"],
        tags=CARD_TAGS,
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": PARQUET}]}],
        dataset_info={"features": features},
    )
    return _render("samples.md", data, facts, hub, modalities=modalities(facts))


def space_card(facts: Facts, hub: Names) -> str:
    """Card of the Space: the front matter of the project's own README, and the repositories that belong to it."""
    front = dict(metadata_load(facts.root / "README.md") or {})
    others = [*hub.adapters.values(), *([hub.volume] if hub.volume else [])]
    front["models"] = [hub.id(hub.model), *(hub.id(name) for name in others)]
    front["datasets"] = [hub.id(hub.samples)]
    return _render("space.md", CardData(**front), facts, hub)


def _render(template: str, data: CardData, facts: Facts, hub: Names, **values: Any) -> str:
    def kid(file: str, key: str) -> str:
        """Render a KID with its interval."""
        value, low, high = (facts.number(file, f"{key}.{part}", ".3f") for part in ("kid", "low", "high"))
        return f"{value} [{low}, {high}]"

    text = _TEMPLATES.get_template(template).render(
        hub=hub,
        exists=facts.exists,
        value=facts.value,
        number=facts.number,
        text=facts.text,
        kid=kid,
        fidelity=fidelity_file,
        speed=SPEED,
        adapter_results=ADAPTER_RESULTS,
        **{"training": TRAINING, **values},
    )
    card = f"---\n{data.to_yaml()}\n---\n\n{text}"
    ModelCard(card)  # reads the front matter as the Hub's client does, model-index and all
    return card


def _licence(licences: Sequence[str], repo_id: str) -> dict[str, Any]:
    """Front matter for the licence of weights, by those of the images that they were trained on."""
    if licences and all(FREE.fullmatch(part) for licence in licences for part in licence.split(" / ")):
        return {"license": "apache-2.0"}
    link = f"https://huggingface.co/{repo_id}#training-data"
    return {"license": "other", "license_name": "as-the-training-data", "license_link": link}


def _widget(facts: Facts) -> list[dict[str, Any]]:
    """Examples of the Hub's page, with pictures that lie in the repository."""
    images = facts.value("./samples/samples.json", "images")
    return [{"text": image["prompt"], "output": {"url": f"samples/{image['file']}"}} for image in images]


def _kid_result(facts: Facts, name: str, file: str, key: str) -> EvalResult:
    return EvalResult(
        task_type="text-to-image",
        dataset_type=f"real-{name}",
        dataset_name=f"unseen real images, {name}",
        dataset_split="validation",
        metric_type="kid",
        metric_name=KID_NAME,
        metric_value=facts.rounded(file, key),  # raises where it is None, which the client would take
    )
