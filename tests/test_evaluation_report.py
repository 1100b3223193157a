"""The report: what failed first, every measure or the word that it is missing, nothing from outside, no real image."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main
from evaluation.faithfulness import GROUPS, faithfulness
from evaluation.html_report import read_results, summary, write_report
from evaluation.ranked_sheet import ranked, write_ranked_sheet
from evaluation.report import write_json
from evaluation.report_bars import (
    COMMANDS,
    FAILED,
    HELD,
    MISSING,
    UNSETTLED,
    all_verdicts,
    by_interval,
    difference_interval,
    ratio_interval,
    utility_domains,
    utility_shortfalls,
)
from hub_cards.facts import Facts

from .test_evaluation import packs, structured, write_pictures  # noqa: F401  (a fixture)
from .tiny import tiny_pipeline

SHIPPED = Path(__file__).parents[1] / "evaluation" / "results"


def states(folder: Path) -> dict[str, str]:
    return {one.subject: one.state for one in all_verdicts(read_results(folder)[0])}


def report(folder: Path) -> str:
    out = folder.parent / "page" / f"{folder.name}.html"
    assert main(["report", "--results", str(folder), "--out", str(out)]) == 0
    return out.read_text(encoding="utf-8")


def part(page: str, name: str) -> str:
    """The section of that id."""
    return re.findall(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)[0]


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny_folder, packs) -> Path:  # noqa: F811
    """Results of somebody's own two folders, each written by its command at a tiny size."""
    root = tmp_path_factory.mktemp("own")
    results, real, made = root / "results", root / "real", root / "made"
    for folder, count, seed in ((real, 24, 0), (made, 12, 100)):
        folder.mkdir()
        for number, kind in enumerate(("disc", "stripes")):
            write_pictures(folder / kind, structured(count, seed + number, 48, kind))
    two = ["--real", str(real), "--synthetic", str(made)]
    learn = ["--size", "32", "--width", "0.125", "--epochs", "1", "--updates", "2"]
    few = ["--segments", "9", "--samples", "20", "--count", "1", "--sheets", str(root / "sheets")]
    unseen = write_pictures(root / "unseen", structured(40, 7, 64))
    copies = ["--unseen", str(unseen), "--model", str(tiny_folder), "--strengths", "0.5", "1", "--source-count", "2"]
    asked = {
        "fidelity": [*two, "--sheet"],
        "utility": [*two, *learn, "--seeds", "0", "1", "--families", "vgg19", "resnet50"],
        "explain": [*two, *learn, *few],
        "privacy": [*two, *copies, "--steps", "2", "--modality", "chest-xray"],
    }
    for row in unseen.iterdir():  # image-to-image needs captions: a class for each
        (unseen / "chest X-ray").mkdir(exist_ok=True)
        row.rename(unseen / "chest X-ray" / row.name) if row.is_file() else None
    for what, options in asked.items():
        assert main([what, *options, "--out", str(results / f"{what}.json")]) == 0, what
    with pytest.MonkeyPatch.context() as patched:  # the judge of modality would need all packs
        patched.setitem(GROUPS, "blood-smear", (("blood_pbc",), ("blood-cell",)))
        faithful = faithfulness(packs, groups=["blood-smear"], count=16, pipe=tiny_pipeline(), steps=1)
    write_json(results / "faithfulness.json", faithful)
    return results


@pytest.fixture()
def shipped(tmp_path) -> Path:
    if not (SHIPPED / "fidelity-ct.json").is_file():
        pytest.skip("no results in evaluation/results: `make evaluate` writes them")
    folder = tmp_path / "shipped"
    shutil.copytree(SHIPPED, folder)
    return folder


# The page


@pytest.mark.parametrize("which", ["own", "shipped"])
def test_page_is_whole_in_itself_and_says_what_it_is(request, which):
    page = report(request.getfixturevalue(which))
    assert "SYNTHETIC images, made by a model. Not for diagnosis." in page
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert "<script" not in page and "@import" not in page and not re.search(r"<(link|iframe|object)\b", page)
    assert not re.search(r"""(src|href|srcset)\s*=(?!\s*["']?data:)""", page) and "url(" not in page
    places = [page.index(f'<section id="{name}">') for name in ("failed", "unsettled", "held", "missing", "fidelity")]
    assert places == sorted(places)
    for what in COMMANDS:
        assert what == "classify" or f'<section id="{what}">' in page
    for uri in re.findall(r'src="(data:image/svg[^"]+)"', page):
        svg = base64.b64decode(uri.partition(",")[2]).decode()
        assert svg.startswith("<?xml") and "<image" not in svg and 'href="http' not in svg


def test_only_generated_images_are_shown_with_what_is_known_of_them(own):
    page = report(own)
    tiles = re.findall(r'<figure><img src="data:image/jpeg;base64,([^"]+)" width="128"[^>]*><figcaption>(.*?)<', page)
    sheet = json.loads((own / "fidelity.json").read_text())["sheet"]
    rows = [one for tiles_of_rank in sheet["rows"].values() for one in tiles_of_rank]
    assert len(tiles) == len(rows) == 24 and page.count("data:image/") == len(tiles) + page.count("data:image/svg")
    distances = [one["distance"] for one in rows]
    assert distances == sorted(distances) and list(sheet["rows"]) == ["best", "median", "worst"]
    for (data, words), row in zip(tiles, rows, strict=True):
        with Image.open(own.parent / "made" / row["name"]) as source:
            wanted = np.asarray(source.convert("RGB").resize((128, 128), Image.Resampling.LANCZOS), float)
        with Image.open(io.BytesIO(base64.b64decode(data))) as tile:
            assert np.abs(np.asarray(tile, float) - wanted).mean() < 12
        assert words.startswith("SYNTHETIC: ") and row["name"] in words
    # The overlays of `explain` hold real people; they are where they were asked for, and nowhere else.
    assert (own.parent / "sheets" / "explain-own.png").is_file() and not list(own.glob("*.png"))


def test_every_measure_stands_beside_its_floor_with_its_command(own):
    page = report(own)
    assert "floor: real images" in part(page, "fidelity") and "Best, median and worst" in part(page, "fidelity")
    utility = part(page, "utility")
    assert all(words in utility for words in ("real (TRTR)", "synthetic (TSTR)", "real, twice", "chance", "resnet50"))
    assert "Confusion matrices" in utility and "number of synthetic images" in utility
    privacy = part(page, "privacy")
    assert "of unseen real images" in privacy and "strength 0.5" in privacy and "0.500, chance" in privacy
    assert "lymphocyte" in part(page, "faithfulness") and "the data has no marks" in part(page, "explain")
    for what in ("fidelity", "utility", "privacy", "explain"):
        assert "command: python -m evaluation" in part(page, what) and "torch" in part(page, what)
    for what in ("adapters", "curve", "speed"):
        assert "Not measured." in part(page, what) and what.capitalize() in part(page, "missing")


def test_shipped_results_are_judged_by_their_intervals(shipped):
    for path in shipped.glob("fidelity-*.json"):
        result = json.loads(path.read_text())
        low, high = result["synthetic"]["low"], result["synthetic"]["high"]
        wanted = HELD if high <= 0.1 else FAILED if low > 0.1 else UNSETTLED
        assert states(shipped)[f"Fidelity, {result['modality']}"] == wanted
    for name, one in json.loads((shipped / "adapters.json").read_text())["adapters"].items():
        assert (states(shipped)[f"Adapter {name}"] == HELD) == one["kid"]["met"]
    page = report(shipped)
    for name, state in states(shipped).items():
        section = {FAILED: "failed", UNSETTLED: "unsettled", HELD: "held", MISSING: "missing"}[state]
        assert name in part(page, section), name


def test_what_is_removed_moves_to_what_was_not_measured(shipped, own, tmp_path):
    assert states(shipped)["Fidelity, ct"] != MISSING
    (shipped / "fidelity-ct.json").unlink()
    (shipped / "adapters.json").unlink()
    found = states(shipped)
    assert found["Fidelity, ct"] == found["Adapters"] == MISSING and "Adapter nuclei" not in found
    page = report(shipped)
    assert "Fidelity, ct" in part(page, "missing") and "Not measured." in part(page, "adapters")
    mine = Path(shutil.copytree(own, tmp_path / "mine"))
    assert "Privacy" not in states(mine)
    (mine / "privacy.json").unlink()
    assert states(mine)["Privacy"] == MISSING and "Not measured." in part(report(mine), "privacy")
    for path in sorted(mine.glob("*.json"))[1:]:
        path.unlink()
    assert sum(state == MISSING for state in states(mine).values()) >= 6
    (mine / "explain.json").unlink()
    assert main(["report", "--results", str(mine), "--out", str(tmp_path / "none.html")]) == 2


def change(path: Path, keys: str, value: object) -> None:
    result = json.loads(path.read_text())
    inner = result
    for key in keys.split("/")[:-1]:
        inner = inner[key]
    inner[keys.split("/")[-1]] = value
    path.write_text(json.dumps(result))


def test_a_doctored_value_moves_between_the_lists(own, tmp_path):
    def after(what: str, keys: str, value: object, subject: str) -> str:
        folder = tmp_path / f"{what}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(own, folder)
        change(folder / f"{what}.json", keys, value)
        results = read_results(folder)[0]
        verdicts = all_verdicts(results)
        state = next(one.state for one in verdicts if one.subject == subject)
        section = {FAILED: "failed", UNSETTLED: "unsettled", HELD: "held"}[state]
        assert subject in part(summary(results, verdicts), section)
        return state

    kid = {"kid": 0.5, "low": 0.45, "high": 0.55, "count": 48, "count_real": 44}
    assert after("fidelity", "synthetic", {**kid}, "Fidelity, fidelity") == FAILED
    assert after("fidelity", "synthetic", kid | {"low": 0.05}, "Fidelity, fidelity") == UNSETTLED
    assert after("fidelity", "synthetic", kid | {"kid": 0.01, "low": 0.0, "high": 0.02}, "Fidelity, fidelity") == HELD
    families = json.loads((own / "utility.json").read_text())["domains"]["own"]["families"]
    for share, gain, wanted in ((0.5, -0.2, FAILED), (0.85, 0.0, UNSETTLED), (0.95, 0.1, HELD)):
        for found in families.values():
            found["synthetic_share_of_real"] = {"value": share, "low": share - 0.05, "high": share + 0.05}
            found["both_minus_real"] = {"value": gain, "low": gain - 0.05, "high": gain + 0.05}
        domains = {"utility": {"domains": {"own": {"families": families}}}}
        assert ("alone 0.50" in utility_shortfalls(domains)) == (share < 0.85)
        assert ("added to real -0.200" in utility_shortfalls(domains)) == (gain < 0)
        for subject in ("Training on synthetic images alone, utility", "Adding synthetic to real images, utility"):
            assert after("utility", "domains/own/families", families, subject) == wanted
    twice = {name: {"domains": {"brain-tumour": {"chance": 0.3, "families": {name: {}, "vgg19": {}}}}} for name in "ab"}
    assert list(utility_domains(twice)["brain-tumour"]["families"]) == ["a", "vgg19", "b", "vgg19 (b)"]
    families["vgg19"]["both_minus_real"] = {"value": -0.2, "low": -0.3, "high": -0.1}  # one family is enough to fail
    assert after("utility", "domains/own/families", families, subject) == FAILED
    families["vgg19"]["synthetic_share_of_real"] = {"value": 0.2, "low": 0.1, "high": 0.3}  # and one to hold
    subject = "Training on synthetic images alone, utility"
    assert after("utility", "domains/own/families", families, subject) == HELD
    subject = "Copies of training images, privacy"
    for count, wanted in ((0, HELD), (20, FAILED)):
        assert after("privacy", "copies/copies", count, subject) == wanted
    subject = "Showing what was asked for, blood-cell (faithfulness)"
    cells = json.loads((own / "faithfulness.json").read_text())["tasks"]["blood-cell"]
    cells |= {
        "judge_is_able": True,
        "real_val": cells["real_val"] | {"confusion": (np.eye(8, dtype=int) * 50).tolist()},
    }
    for right, wrong, wanted in ((10, 40, FAILED), (2, 1, UNSETTLED), (45, 5, HELD)):
        matrix = np.eye(8, dtype=int) * right + np.roll(np.eye(8, dtype=int), 1, 0) * wrong
        cells["generated"] |= {"confusion": matrix.tolist()}
        assert after("faithfulness", "tasks/blood-cell", cells, subject) == wanted
    assert after("faithfulness", "tasks/blood-cell", cells | {"judge_is_able": False}, subject) == UNSETTLED
    made = cells["generated"] | {"accuracy_of_4_modalities": 1.0, "count": 16}  # 16 images cannot settle 90 %
    modality = cells | {"generated": made, "real_val": cells["real_val"] | {"accuracy_of_4_modalities": 1.0}}
    for count, wanted in ((16, UNSETTLED), (1600, HELD)):
        made["count"] = count
        found = {"modality": modality}
        subject = "Showing what was asked for, modality (faithfulness)"
        assert after("faithfulness", "tasks", found, subject) == wanted


def test_a_second_network_that_disagrees_is_a_failure(own, tmp_path):
    folder = Path(shutil.copytree(own, tmp_path / "two"))
    result = json.loads((folder / "fidelity.json").read_text())
    subject = "A second network agrees, fidelity"
    assert states(folder)[subject] == MISSING
    kinds = {key: result[key] for key in ("synthetic", "floor", "blur_sigma_1", "blur_sigma_2")}
    for agree, wanted in ((False, FAILED), (None, UNSETTLED), (True, HELD)):
        said = {"agree": agree, "disagreements": ["They disagree."][: agree is False], "unconfirmed": []}
        changed = result | {"networks": {"own": {"network": "our own", **kinds}}, "agreement": said}
        (folder / "fidelity.json").write_text(json.dumps(changed))
        assert states(folder)[subject] == wanted
    assert "our own" in part(report(folder), "fidelity")


def test_models_that_differ_are_said_and_words_of_results_are_escaped(shipped):
    assert "different models" not in report(shipped)
    change(shipped / "fidelity-ct.json", "settings/model_sha256", "ab" * 32)
    change(shipped / "fidelity-ct.json", "command", "<script>alert(1)</script>")
    page = report(shipped)
    assert "2 different models" in page and "abababababab: fidelity-ct" in page
    assert "<script" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("", "", "`results` is "),
        ("a.json", "{", "'a.json' is no JSON"),
        ("a.json", '{"what": "fidelity"}', "a.json is no whole result of 'fidelity'"),
        ("a.json", '{"what": "curve", "points": [{}]}', "one of a.json is no whole result of 'curve'"),
        ("a.json", '{"what": "nothing"}', "it holds no result file"),
    ],
)
def test_bad_folders_end_in_one_clear_line(tmp_path, capsys, name, text, words):
    folder = tmp_path / "results"
    if name:
        folder.mkdir()
        (folder / name).write_text(text)
    assert main(["report", "--results", str(folder), "--out", str(tmp_path / "out.html")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1 and not (tmp_path / "out.html").exists()


def test_page_is_written_whole_and_the_same_each_time(own, tmp_path):
    first = write_report(own, tmp_path / "a" / "one.html")
    second = write_report(own, tmp_path / "a" / "two.html")
    assert first.read_bytes() == second.read_bytes() and len(first.read_bytes()) < 1_500_000
    assert sorted(path.name for path in first.parent.iterdir()) == ["one.html", "two.html"]


# What it stands on


def test_intervals_have_their_known_values():
    assert [by_interval(*some, 0.5) for some in ((0.5, 0.6), (0.4, 0.6), (0.3, 0.4))] == [HELD, UNSETTLED, FAILED]
    assert [by_interval(*some, 0.5, least=False) for some in ((0.4, 0.5), (0.4, 0.6), (0.6, 0.7))] == [
        HELD,
        UNSETTLED,
        FAILED,
    ]
    # Newcombe 1998, table II, (a), method 10
    assert difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=2e-4)
    made, real = ({"confusion": [[right, 100 - right], [100 - right, right]]} for right in (60, 90))
    value, low, high = ratio_interval(made, real)
    assert value == pytest.approx(2 / 3) and 0.55 < low < 0.61 and 0.72 < high < 0.78
    sure = {"confusion": [[6, 0], [0, 6]]}
    value, low, high = ratio_interval(sure, sure)
    assert value == 1 and low < 0.9  # a dozen images are no certainty


def test_ranks_are_of_the_order_and_small_sets_show_fewer(tmp_path):
    found = np.random.default_rng(0).permutation(30).astype(float)
    chosen = ranked(found)
    assert [found[place] for place in chosen["best"]] == list(range(8))
    assert [found[place] for place in chosen["median"]] == list(range(11, 19))
    assert [found[place] for place in chosen["worst"]] == list(range(22, 30))
    assert ranked(np.arange(4.0), 8) == {"best": [0], "median": [1], "worst": [3]}
    facts = [{"prompt": str(number), "seed": number} for number in range(30)]
    sheet = write_ranked_sheet(tmp_path / "s.jpg", structured(30, 0, 32), found, facts)
    assert sheet["rows"]["worst"][-1]["distance"] == 29 and (tmp_path / "s.jpg").stat().st_size < 200_000
    with Image.open(tmp_path / "s.jpg") as picture:
        assert picture.size == (8 * 128, 3 * 128) and b"SYNTHETIC" in picture.info["comment"]


def test_results_hold_the_rows_that_the_cards_read(own):
    facts = Facts(own, own)
    for file, least in (("utility.json", 8), ("privacy.json", 4)):
        rows = facts.value(file, "card")
        assert len(rows) >= least
        for index in range(len(rows)):
            for key in ("value", "low", "high", "floor"):
                facts.number(file, f"card.{index}.{key}", ".3f")
            assert facts.text(file, f"card.{index}.measure") and facts.text(file, f"card.{index}.floor_is")
    template = (Path(__file__).parents[1] / "hub_cards" / "_measures.md").read_text()
    assert set(re.findall(r'item ~ "(\w+)"', template)) == set(rows[0])
