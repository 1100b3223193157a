"""One HTML page of all results in a folder: what failed first, then what held, then every measure beside its floor.

Self-contained: no network, no script, no font; plots and generated images lie inside. Real images are never on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import Path

from .report_bars import (
    BARS,
    COMMANDS,
    FAILED,
    HELD,
    MISSING,
    STATES,
    UNSETTLED,
    Results,
    Verdict,
    all_verdicts,
    utility_shortfalls,
)
from .report_parts import folded, paragraph, provenance_of, table
from .report_sections import (
    Files,
    adapters_section,
    curve_section,
    explain_section,
    faithfulness_section,
    fidelity_section,
    privacy_section,
    speed_section,
    utility_section,
)
from .report_volumes import volumes_section

CSS = Path(__file__).with_name("report.css")
# By what was measured: title, the section, and how it was measured in two sentences.
SECTIONS: dict[str, tuple[str, Callable[[Files, Path], str], str]] = {
    "fidelity": (
        "Fidelity: how far from real images?",
        fidelity_section,
        "Features of synthetic images are compared with those of real images of people whom the model never saw; as "
        "many real training images give the floor, and blurred ones say what a known loss costs. FD depends on how "
        "many images there are: read it beside its floor only.",
    ),
    "utility": (
        "Utility: is it worth training on?",
        utility_section,
        "CNNs are trained from nothing on each set with several seeds and tested on real people of none of the "
        "training sets; 'real, twice' has as many images as 'both', so that a gain is not one of more updates. "
        "Intervals of single accuracies are over seeds, those of comparisons over redrawn test people, runs averaged.",
    ),
    "faithfulness": (
        "Faithfulness: does it show what was asked for?",
        faithfulness_section,
        "Judges that learnt from real images only are asked what each generated image shows, and so are unseen real "
        "ones. A judge's word is worth what it gets right on those.",
    ),
    "privacy": (
        "Privacy: does it give people away?",
        privacy_section,
        "A copy is what is nearer to a training image, over the mean of the next 20, than 1 % of unseen real images "
        "are; the false alarms are those of a threshold from the other half of the unseen. Neither this nor the "
        "membership test proves privacy: they find near copies and nothing subtler.",
    ),
    "explain": (
        "Explanation: where does a classifier look?",
        explain_section,
        "LIME weighs superpixels of an image by how much they speak for the class that a network trained on real "
        "images gives it. Where the data marks the finding, the share of the positive weights inside stands beside "
        "that of weights laid at random.",
    ),
    "adapters": (
        "Adapters: what does each change?",
        adapters_section,
        "Each adapter against the bare base, with the same prompts and seeds, on unseen real images. The judge learnt "
        "from real images only, and may go by a hospital's style rather than by disease.",
    ),
    "curve": (
        "Training: does it still get better?",
        curve_section,
        "KID of copies of the base from different hours of training. Few images a copy: compare its points with one "
        "another only.",
    ),
    "volumes": (
        "Volumes: three-dimensional, with label maps",
        volumes_section,
        "Generated volumes against those of a pack, split by name into what the model may have seen and what not. "
        "3D U-Nets are trained on real and generated pairs with equal numbers of updates and tested on unseen volumes.",
    ),
    "speed": (
        "Speed",
        speed_section,
        "Seconds an image, beside the bare loop of diffusers with the same parts. Medians of several turns on the "
        "machine named below.",
    ),
}

HEADS = {
    FAILED: ("What failed", "failed", "Nothing that was measured failed."),
    UNSETTLED: ("What is not settled: the interval lies on both sides of the bar", "unsettled", "Nothing."),
    HELD: ("What held", "held", "Nothing held."),
    MISSING: ("What was not measured", "missing", "Everything was measured."),
}


def read_results(folder: str | Path) -> tuple[Results, list[str]]:
    """Read the result files of a folder, by what was measured; the second value names JSON files that are none.

    Raises
    ------
    ValueError
        There is no such folder, a file is no JSON, or no result is there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`results` is {str(folder)!r}: there is no such folder")
    results: Results = {}
    others = []
    for path in sorted(folder.glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"`results`: {path.name!r} is no JSON: {error}") from error
        what = found.get("what") if isinstance(found, dict) else None
        if what in COMMANDS:
            results.setdefault(what, {})[path.stem] = found
        else:
            others.append(path.name)
    if not results:
        raise ValueError(f"`results` is {str(folder)!r}: it holds no result file; `python -m evaluation` writes them")
    return results, others


def models_of(results: Results) -> dict[str, list[str]]:
    """Files by the digest of the image model that they measured; that of volumes is another one anyway."""
    found: dict[str, list[str]] = {}
    for files in (files for what, files in results.items() if what != "volumes"):
        for name, result in files.items():
            parts = [result, *result.get("domains", {}).values(), *result.get("tasks", {}).values()]
            parts += result.get("adapters", {}).values()
            digests = {str((part.get("settings") or {}).get("model_sha256", "")) for part in parts}
            for digest in sorted(digests - {""}):
                found.setdefault(digest, []).append(name)
    return found


def summary(results: Results, verdicts: list[Verdict]) -> str:
    """What failed, what is not settled, what held and what is missing, in this order."""
    counts = {state: sum(one.state == state for one in verdicts) for state in STATES}
    words = f"Of {len(verdicts) - counts[MISSING]} bars that were measured, {counts[FAILED]} failed, "
    words += (
        f"{counts[UNSETTLED]} are not settled and {counts[HELD]} held; {counts[MISSING]} points were not measured. "
    )
    parts = [paragraph(words + "Brackets are 95 % intervals.")]
    if short := utility_shortfalls(results.get("utility", {})):
        parts.append(paragraph(f"By their values, training on synthetic images falls short: {short}."))
    if len(models := models_of(results)) > 1:
        listed = "; ".join(f"{digest[:12]}: {', '.join(files)}" for digest, files in models.items())
        parts.append(paragraph(f"These results are of {len(models)} different models and not one picture: {listed}."))
    for state in STATES:
        title, kind, nothing = HEADS[state]
        some = [one for one in verdicts if one.state == state]
        items = "".join(
            f'<li><span class="state {kind}">{escape(one.subject)}</span>: '
            + (f"<code>{escape(one.words)}</code>" if one.words.startswith("python") else escape(one.words))
            + "</li>"
            for one in some
        )
        parts.append(f'<section id="{kind}"><h3>{title} ({len(some)})</h3>')
        parts.append((f'<ul class="verdicts">{items}</ul>' if some else paragraph(nothing)) + "</section>")
    return "".join(parts)


def sections(results: Results, folder: Path) -> str:
    """Every measure, also those that were not taken."""
    parts = []
    for what, (title, section, how) in SECTIONS.items():
        files = results.get(what, {})
        if what == "faithfulness":  # the judges of `classify` are the same
            files = {**files, **results.get("classify", {})}
        parts.append(f'<section id="{what}"><h2>{escape(title)}</h2>')
        if files:
            try:
                parts.append(section(files, folder))
            except (KeyError, TypeError) as error:
                names = ", ".join(f"{name}.json" for name in files)
                raise ValueError(f"`results`: one of {names} is no whole result of {what!r}: {error!r}") from error
            parts += [paragraph(how, "small"), provenance_of(files)]
        else:
            parts.append(f"<p>Not measured. <code>{escape(COMMANDS[what])}</code></p>")
        parts.append("</section>")
    return "".join(parts)


def page(results: Results, others: list[str], folder: Path) -> str:
    """Put the whole page together."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Synthetic images: is it any good?</title><style>{CSS.read_text(encoding='utf-8')}</style>",
        "</head><body><main>",
        "<h1>Synthetic images: is it any good?</h1>",
        '<p class="banner">SYNTHETIC images, made by a model. Not for diagnosis.</p>',
        summary(results, all_verdicts(results)),
        sections(results, folder),
        "<section id='bars'><h2>The bars</h2>",
        table(["of what", "wanted", "source"], BARS),
        paragraph(
            "Held: the whole 95 % interval is on the right side of the bar. Failed: on the wrong side. Not settled: on "
            "both. Exceptions: no copy at all is held; an adapter's bar is its fall and no overlap of the intervals."
        ),
        folded("JSON files in the folder that are no measure", paragraph(", ".join(others))) if others else "",
        "</section></main></body></html>\n",
    ]
    return "".join(parts)


def write_report(results: str | Path = "evaluation/results", out: str | Path = "build/report/report.html") -> Path:
    """Write the page of a folder of results; it appears whole or not at all.

    Parameters
    ----------
    results
        Folder of JSON files that the other commands wrote, and the sheets beside them.
    out
        HTML file to write.

    Raises
    ------
    ValueError
        There is no such folder, no result in it, or a file that is not whole.
    """
    found, others = read_results(results)
    text = page(found, others, Path(results))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(out)
    return out
