"""What each change to the base did: the headline figures of every round of results, kept side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .images import MODALITIES
from .report import read_json

JUDGED = ("brain-tumour", "blood-cell", "modality")


def headline(results: Path) -> dict[str, Any]:
    """KID of each modality and the judges' shares, as they stand in a folder of results.

    Raises
    ------
    FileNotFoundError, KeyError
        A result is missing: nothing is filled in for it.
    ValueError
        The results are of more than one model.
    """
    kid, models = {}, set()
    for modality in MODALITIES:
        found = read_json(results / f"fidelity-{modality}.json")
        kid[modality] = {key: found["synthetic"][key] for key in ("kid", "low", "high", "count")}
        models.add(found["settings"]["model_sha256"])
    judged = read_json(results / "faithfulness.json")
    models.add(judged["settings"]["model_sha256"])
    recognised = {
        task: {key: judged["tasks"][task]["generated"][key] for key in ("accuracy", "count")} for task in JUDGED
    }
    if len(models) != 1:
        raise ValueError(
            f"`results` is {str(results)!r}: its files are of {len(models)} models; measure them all again"
        )
    return {"model_sha256": models.pop(), "kid": kid, "recognised": recognised, "judged_by": "faithfulness"}


def add_to_history(label: str, results: Path, path: Path) -> dict[str, Any]:
    """The history in `path` with the present results at its end; those of the same label are replaced.

    Parameters
    ----------
    label
        What was changed, in a few words.
    results
        Folder of JSON files that `make evaluate` wrote.
    path
        The history so far; need not exist.
    """
    if not label.strip() or "|" in label or "\n" in label:
        raise ValueError(f"`label` is {label!r}: allowed are words in one line, without '|'")
    rounds = read_json(path)["rounds"] if path.is_file() else []
    found = {"label": label, **headline(results)}
    places = [place for place, one in enumerate(rounds) if one["label"] == label]
    if places:
        rounds[places[0]] = found
    else:
        rounds.append(found)
    return {"what": "history", "rounds": rounds}


def history_table(found: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table, a round a line."""
    tasks = ("brain-tumour", "blood-cell")
    lines = [
        f"| change | {' | '.join(f'KID {m}' for m in MODALITIES)} | {' | '.join(f'{t} recognised' for t in tasks)} |",
        "|---" * (1 + len(MODALITIES) + len(tasks)) + "|",
    ]
    for one in found["rounds"]:
        cells = [f"{one['kid'][m]['kid']:.3f}" for m in MODALITIES]
        cells += [f"{one['recognised'][t]['accuracy']:.1%} of {one['recognised'][t]['count']}" for t in tasks]
        lines.append(f"| {' | '.join([one['label'], *cells])} |")
    return lines
