"""What is asked of the results, and whether it holds: failed, not settled, held or not measured.

A bar is held only where the whole interval is on its right side, failed where the whole interval is on the wrong one,
and not settled in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .adapters import TARGET_KNOWN, TARGET_NEW
from .faithfulness import GOALS
from .images import MODALITIES
from .judge import wilson_interval
from .utility_results import PASS_SHARE
from .utility_sets import PAPER_DOMAINS

Results = dict[str, dict[str, dict[str, Any]]]  # by what was measured, then by the stem of the file

FAILED, UNSETTLED, HELD, MISSING = "failed", "not settled", "held", "not measured"
STATES = (FAILED, UNSETTLED, HELD, MISSING)
KID_BAR = 0.10
DRAWS = 4000
# The one list of what is wanted: words, bar, where it is from.
BARS = (
    ("KID against unseen real images, each modality", f"at most {KID_BAR:.2f}", "goal of the base model"),
    ("A second feature network", "agrees on the side of each control", "brief: it must agree, or the report says so"),
    (
        "Accuracy trained on synthetic (TSTR) as a share of trained on real (TRTR)",
        f"at least {PASS_SHARE:.2f} in each domain, some CNN family",
        "brief, judged",
    ),
    ("Real and synthetic together", "not below real alone, each domain", "brief, judged"),
    *(
        (
            f"Faithfulness: {task}",
            f"at least {least}" + (" of the judge's own accuracy on real images" if of == "share_of_real" else ""),
            "brief, judged",
        )
        for task, (of, least) in GOALS.items()
    ),
    ("Copies of training images", "not above the false alarms among unseen real images", "brief"),
    (
        "KID with an adapter",
        f"falls by {TARGET_KNOWN:.0%} where the base knows the modality, {TARGET_NEW:.0%} where not; no overlap",
        "goal of the adapters",
    ),
    ("Volumes: correlation of sizes asked for and got", "at least 0.8", "brief, judged"),
    ("Volumes: MS-SSIM among them", "within 0.05 of that among unseen real ones", "brief, judged"),
    ("Volumes: nearness to training volumes", "none closer than real ones are to one another", "brief, judged"),
    ("Volumes: Dice with synthetic pairs", "above duplicated real ones, intervals over seeds apart", "brief, judged"),
    ("Volumes: Dice trained on synthetic alone", f"at least {PASS_SHARE:.2f} of that of all real", "brief, judged"),
)
COMMANDS = {
    "fidelity": "python -m evaluation fidelity --real REAL --synthetic MADE --sheet --out RESULTS/fidelity.json",
    "utility": "python -m evaluation utility --real REAL --synthetic MADE --out RESULTS/utility.json",
    "faithfulness": "python -m evaluation faithfulness --synthetic MADE --out RESULTS/faithfulness.json",
    "classify": "python -m evaluation classify --out RESULTS/classify.json",
    "privacy": "python -m evaluation privacy --real REAL --synthetic MADE --out RESULTS/privacy.json",
    "explain": "python -m evaluation explain --real REAL --synthetic MADE --sheets AWAY --out RESULTS/explain.json",
    "adapters": "python -m evaluation adapters --out RESULTS/adapters.json",
    "curve": "python -m evaluation curve --models COPIES --out RESULTS/curve.json",
    "volumes": "python -m evaluation volumes --data PACK --out RESULTS/volumes.json",
    "speed": "python -m evaluation speed --out RESULTS/speed.json",
}


@dataclass(frozen=True)
class Verdict:
    """One bar: its state (one of `STATES`), of what, and the figures in words."""

    state: str
    subject: str
    words: str


def by_interval(low: float, high: float, bar: float, *, least: bool = True) -> str:
    """State of a bar that a value should reach (`least`) or not exceed, from the value's interval."""
    right, wrong = (low >= bar, high < bar) if least else (high <= bar, low > bar)
    return HELD if right else FAILED if wrong else UNSETTLED


def with_interval(found: dict[str, Any], name: str = "value", spec: str = ".3f") -> str:
    """Give `0.123 [0.100, 0.150]`."""
    if found.get("low") is None or found.get("high") is None:
        return format(found[name], spec)
    return f"{found[name]:{spec}} [{found['low']:{spec}}, {found['high']:{spec}}]"


def percent(value: float, low: float | None = None, high: float | None = None) -> str:
    """Give `86 % [80 %, 91 %]`, or the value alone."""
    return f"{value:.1%}" + (f" [{low:.1%}, {high:.1%}]" if low is not None and high is not None else "")


def all_verdicts(results: Results) -> list[Verdict]:
    """Judge all bars on what was measured, and list what was not.

    Raises
    ------
    ValueError
        A result lacks what its kind should hold.
    """
    found: list[Verdict] = []
    kinds = {
        "fidelity": _fidelity,
        "faithfulness": _judged,
        "classify": _judged,
        "privacy": _privacy,
        "adapters": _adapters,
        "volumes": _volumes,
    }
    for what, judge in kinds.items():
        for name, result in results.get(what, {}).items():
            try:
                found += judge(name, result)
            except (KeyError, TypeError) as error:
                raise ValueError(f"`results`: {name}.json is no whole result of {what!r}: {error!r}") from error
    try:
        found += _utility(results.get("utility", {}))
    except (KeyError, TypeError) as error:
        files = ", ".join(f"{name}.json" for name in results["utility"])
        raise ValueError(f"`results`: one of {files} is no whole result of 'utility': {error!r}") from error
    return [*found, *_missing(results)]


def title_of(name: str, result: dict[str, Any]) -> str:
    """What a fidelity result is of: its modality, else the name of its file."""
    return str(result.get("modality") or name)


def _fidelity(name: str, result: dict[str, Any]) -> Iterator[Verdict]:
    made, floor, title = result["synthetic"], result["floor"], title_of(name, result)
    words = (
        f"KID {with_interval(made, 'kid')} of {made['count']} images; wanted at most {KID_BAR:.2f}, real images get "
    )
    state = by_interval(made["low"], made["high"], KID_BAR, least=False)
    yield Verdict(state, f"Fidelity, {title}", words + with_interval(floor, "kid"))
    subject = f"A second network agrees, {title}"
    if not result.get("networks"):
        yield Verdict(MISSING, subject, "one network only: add `--networks efficientnet-lite0 own`")
        return
    agreed = result["agreement"]
    kids = "; ".join(
        f"{network} {with_interval(one['synthetic'], 'kid')}, floor {with_interval(one['floor'], 'kid')}"
        for network, one in {"first network": result, **result["networks"]}.items()
    )
    state = {True: HELD, False: FAILED, None: UNSETTLED}[agreed["agree"]]
    said = " ".join([*agreed["disagreements"], *agreed["unconfirmed"]]) or "All see the images on the same side."
    yield Verdict(state, subject, f"{said} KID: {kids}")


def utility_domains(files: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Domains of all results of `utility`, by title; one that stands in several files has the CNN families of all."""
    merged: dict[str, dict[str, Any]] = {}
    for name, result in files.items():
        for domain, found in result["domains"].items():
            one = merged.setdefault(name if domain == "own" else domain, {**found, "families": {}})
            for family, trained in found["families"].items():
                one["families"][f"{family} ({name})" if family in one["families"] else family] = trained
    return merged


def _utility(files: Mapping[str, dict[str, Any]]) -> Iterator[Verdict]:
    for title, found in utility_domains(files).items():
        shares, gains = (
            {family: one[key] for family, one in found["families"].items() if key in one}
            for key in ("synthetic_share_of_real", "both_minus_real")
        )
        if shares:
            best = max(shares, key=lambda family: shares[family]["low"])
            state = by_interval(shares[best]["low"], max(one["high"] for one in shares.values()), PASS_SHARE)
            listed = "; ".join(f"{family} {with_interval(one)}" for family, one in shares.items())
            words = f"TSTR as a share of TRTR: {listed}; wanted at least {PASS_SHARE:.2f} for some family"
            regimes = found["families"][best]["regimes"]
            real = regimes["real"]["balanced_accuracy"]["mean"]
            words += f". Balanced accuracy on real images alone {real:.3f}, chance {found['chance']:.3f}"
            yield Verdict(state, f"Training on synthetic images alone, {title}", words)
        if gains:
            states = {by_interval(one["low"], one["high"], 0) for one in gains.values()}
            state = next(state for state in STATES if state in states)
            listed = "; ".join(
                f"{family} {one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]" for family, one in gains.items()
            )
            words = f"balanced accuracy, both minus real alone: {listed}; wanted not below 0 for any family"
            yield Verdict(state, f"Adding synthetic to real images, {title}", words)


def utility_shortfalls(files: Mapping[str, dict[str, Any]]) -> str:
    """Say by the values themselves, settled or not, where synthetic images fall short; empty where nowhere."""
    short = []
    for title, found in utility_domains(files).items():
        families = found["families"].items()
        shares = {
            family: one["synthetic_share_of_real"]["value"]
            for family, one in families
            if "synthetic_share_of_real" in one
        }
        if shares and max(shares.values()) < PASS_SHARE:
            best = max(shares, key=lambda family: shares[family])
            short.append(f"{title}: alone {shares[best]:.2f} of real at best ({best}), wanted {PASS_SHARE:.2f}")
        for family, one in families:
            if one.get("both_minus_real", {}).get("value", 0) < 0:
                short.append(
                    f"{title}: added to real {one['both_minus_real']['value']:+.3f} ({family}), wanted 0 or more"
                )
    return "; ".join(short)


def ratio_interval(made: dict[str, Any], real: dict[str, Any], seed: int = 0) -> tuple[float, float, float]:
    """Class-balanced accuracy on generated images over that on real ones, with its 95 % interval.

    From confusion matrices, by draws of each class's accuracy from its posterior (Jeffreys' prior), which is sound
    where a class is small or always right.
    """
    rng = np.random.default_rng(seed)

    def balanced(judged: dict[str, Any]) -> tuple[float, np.ndarray]:
        matrix = np.asarray(judged["confusion"], float)
        right, asked = np.diag(matrix), matrix.sum(1)
        right, asked = right[asked > 0], asked[asked > 0]
        drawn = rng.beta(right + 0.5, asked - right + 0.5, (DRAWS, len(asked)))
        return float((right / asked).mean()), drawn.mean(1)

    (one, ones), (other, others) = balanced(made), balanced(real)
    low, high = np.quantile(ones / others, (0.025, 0.975))
    return one / max(other, 1e-12), float(low), float(high)


def _judged(name: str, result: dict[str, Any]) -> Iterator[Verdict]:
    for task, found in result["tasks"].items():
        if task not in GOALS or "generated" not in found:
            continue
        of, bar = GOALS[task]
        made, real = found["generated"], found["real_val"]
        if of == "share_of_real":
            value, low, high = ratio_interval(made, real)
            words = f"{made['balanced_accuracy']:.3f} balanced accuracy of {made['count']} images, as a share of that "
            words += f"on real ones {value:.3f} [{low:.3f}, {high:.3f}]; wanted at least {bar}; real images get "
            words += f"{real['balanced_accuracy']:.3f}, chance {made['chance']:.3f}"
        else:
            value = made[of]
            low, high = wilson_interval(round(value * made["count"]), made["count"])
            words = (
                f"{percent(value, low, high)} of {made['count']} images show it; wanted at least {bar:.0%}; of real "
            )
            words += f"images {real[of]:.1%} are recognised, by chance {made['chance']:.1%}"
        state = by_interval(low, high, bar)
        if not found.get("judge_is_able", True):
            state, words = UNSETTLED, words + ". The judge cannot tell real images apart: its word means nothing"
        yield Verdict(state, f"Showing what was asked for, {task} ({name})", words)


def difference_interval(right: int, count: int, other: int, others: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares (Newcombe 1998, method 10)."""
    one, two = right / count, other / others
    (low, high), (low_two, high_two) = wilson_interval(right, count), wilson_interval(other, others)
    return (
        one - two - float(np.hypot(one - low, high_two - two)),
        one - two + float(np.hypot(high - one, two - low_two)),
    )


def _privacy(name: str, result: dict[str, Any]) -> Iterator[Verdict]:
    copies, counts = result["copies"], result["counts"]
    alarms = round(copies["false_alarms"] * counts["unseen"])
    low, high = difference_interval(copies["copies"], counts["synthetic"], alarms, counts["unseen"])
    # No copy at all cannot be beaten: no interval could ever show less.
    state = HELD if copies["copies"] == 0 else by_interval(low, high, 0, least=False)
    words = f"{copies['copies']} of {counts['synthetic']} generated images are called copies, "
    words += (
        f"{percent(copies['share'], copies['share_low'], copies['share_high'])}; of {counts['unseen']} unseen real "
    )
    words += f"images {percent(copies['false_alarms'], copies['false_alarms_low'], copies['false_alarms_high'])} are"
    yield Verdict(state, f"Copies of training images, {result['settings'].get('modality') or name}", words)


def _adapters(name: str, result: dict[str, Any]) -> Iterator[Verdict]:
    for adapter, found in result["adapters"].items():
        kid = found["kid"]
        # The widest that both intervals allow: the fall itself was not redrawn.
        most = 1 - kid["with"]["low"] / kid["without"]["high"]
        possible = most >= kid["target"] and not kid["intervals_overlap"]
        state = HELD if kid["met"] else UNSETTLED if possible else FAILED
        fall = "not at all" if kid["fall"] is None else f"by {kid['fall']:.0%}"
        words = (
            f"KID falls {fall}, from {with_interval(kid['without'], 'kid')} to {with_interval(kid['with'], 'kid')}; "
        )
        words += f"wanted {kid['target']:.0%} and no overlap; real images get {with_interval(kid['floor'], 'kid')}"
        yield Verdict(state, f"Adapter {adapter}", words)


def _volumes(name: str, result: dict[str, Any]) -> Iterator[Verdict]:
    for one in result["judged"]:  # the result itself says what was asked
        subject, wanted = (
            f"Volumes: {one['question']}",
            f"wanted {'at least' if one['least'] else 'at most'} {one['bar']:g}",
        )
        if one["value"] is None or one["low"] is None:
            yield Verdict(MISSING, subject, f"{name}.json has no interval for it; {wanted}")
            continue
        state = by_interval(one["low"], one["high"], one["bar"], least=one["least"])
        spec = "d" if isinstance(one["value"], int) else ".3f"
        figures = format(one["value"], spec) if one["low"] == one["high"] else with_interval(one, spec=spec)
        yield Verdict(state, subject, f"{figures}; {wanted}" + (f". {one['words']}" if one["words"] else ""))


def _missing(results: Results) -> Iterator[Verdict]:
    """What was not measured, of kinds that are absent and of parts of kinds that are there."""
    for what, command in COMMANDS.items():
        if not results.get(what) and not (what == "classify" and results.get("faithfulness")):
            yield Verdict(MISSING, what.capitalize(), command)
    seen = {result.get("modality") for result in results.get("fidelity", {}).values()} & set(MODALITIES)
    for modality in MODALITIES:
        if seen and modality not in seen:
            yield Verdict(
                MISSING,
                f"Fidelity, {modality}",
                f"python -m evaluation fidelity --modality {modality} --out RESULTS/fidelity-{modality}.json",
            )
    domains = {domain for result in results.get("utility", {}).values() for domain in result["domains"]}
    for domain in PAPER_DOMAINS:
        if domains - {"own"} and domain not in domains:
            yield Verdict(
                MISSING,
                f"Utility, {domain}",
                f"python -m evaluation utility --domains {domain} --out RESULTS/utility-{domain}.json",
            )
    judged = [result for what in ("faithfulness", "classify") for result in results.get(what, {}).values()]
    tasks = {task for result in judged for task, found in result["tasks"].items() if "generated" in found}
    for task in GOALS:
        if judged and task not in tasks:
            yield Verdict(MISSING, f"Showing what was asked for, {task}", COMMANDS["faithfulness"])
    privacy = results.get("privacy", {}).values()
    if privacy and not any("image_to_image" in result for result in privacy):
        yield Verdict(
            MISSING,
            "Sources found again after image-to-image",
            "python -m evaluation privacy ... --strengths 0.3 0.6 0.9",
        )
