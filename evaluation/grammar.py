"""The commands of `python -m evaluation`, and what each one takes."""

from __future__ import annotations

import argparse
from pathlib import Path


def whole_or_all(words: str) -> int | None:
    """Read a number of images, or `all` as None."""
    return None if words == "all" else int(words)


def make_parser() -> argparse.ArgumentParser:
    """Build the command line's grammar."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description="Is it any good?")
    commands = parser.add_subparsers(dest="what", required=True)
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default="pipeline", help="folder or Hub id of the pipeline (default: %(default)s)")
    seeded = argparse.ArgumentParser(add_help=False)
    seeded.add_argument("--seed", type=int, default=0, help="of every draw, and of the first image (default: 0)")
    drawn = argparse.ArgumentParser(add_help=False)
    drawn.add_argument("--data", default="../shared/data/images", help="folder with the packs (default: %(default)s)")
    drawn.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    drawn.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    drawn.add_argument("--batch", type=int, default=4, help="images a call (default: 4)")
    drawn.add_argument("--cache", help="folder that keeps images and judges, so that an interrupted run goes on")
    made = argparse.ArgumentParser(add_help=False, parents=[model, drawn])
    pair = argparse.ArgumentParser(add_help=False)
    pair.add_argument("--real", help="folder of real images with classes (default: the packs of --domains)")
    pair.add_argument("--synthetic", help="folder of synthetic images with the same classes, instead of generating")
    pair.add_argument("--label-column", default="label", help="of metadata.csv, where there is one (default: label)")
    pair.add_argument("--real-count", type=whole_or_all, default=600, help="to train on, or `all` (default: 600)")
    pair.add_argument("--size", type=int, default=64, help="side of the images in pixels, from 32 (default: 64)")
    pair.add_argument("--width", type=float, default=0.25, help="factor of all channels; 1 is full (default: 0.25)")
    pair.add_argument("--epochs", type=int, default=10, help="(default: 10)")
    pair.add_argument("--updates", type=int, default=150, help="fewest updates of a training (default: 150)")

    one = commands.add_parser("fidelity", parents=[made, seeded], help="distances from unseen real images")
    one.add_argument("--modality", help="chest-xray, ct, brain-mri or blood-smear; needed without --real")
    one.add_argument("--count", type=int, default=200, help="images to compare, at least 20 (default: 200)")
    one.add_argument("--per-class", type=int, default=0, help="bring each class of the packs up to so many images")
    one.add_argument("--real", help="folder of real images (default: the packs of --modality)")
    one.add_argument("--synthetic", help="folder of DICOM or picture files to measure instead of generating")
    one.add_argument(
        "--networks", nargs="+", default=["efficientnet-lite0"], help="also: own, Hub ids (default: %(default)s)"
    )
    one.add_argument("--sheet", action="store_true", help="the best, median and worst images as a JPEG beside the JSON")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("speed", parents=[model, seeded], help="seconds an image, beside the bare diffusers loop")
    one.add_argument("--steps", type=int, nargs="+", help="denoising steps (default: the model's, and half of them)")
    one.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="images a call (default: 1 4)")
    one.add_argument("--repeats", type=int, default=3, help="turns of each way (default: 3)")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("classify", parents=[made, seeded], help="does an image show what its prompt asked for")
    one.add_argument(
        "--tasks", nargs="+", default=["modality", "blood-cell", "brain-tumour"], help="default: all three"
    )
    one.add_argument("--count", type=int, default=200, help="images a task; 0 checks the judges alone (default: 200)")
    one.add_argument("--varied", action="store_true", help="word the captions anew instead of the packs' plain text")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("adapters", parents=[made], help="KID and judge with and without each adapter")
    one.add_argument("--adapters", nargs="+", help="names or folders (default: all that are shipped)")
    one.add_argument("--count", type=int, default=60, help="images a seed, at least 20 (default: 60)")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the draws and images (default: 0 1 2)")
    one.add_argument(
        "--networks", nargs="+", default=["efficientnet-lite0"], help="also: own, Hub ids (default: %(default)s)"
    )
    one.add_argument("--keep", action="store_true", help="keep what --out holds of other adapters, if made alike")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("privacy", parents=[model, seeded], help="copies, membership, sources found again")
    one.add_argument("--real", required=True, help="folder of the training images; its split says what was unseen")
    one.add_argument("--unseen", help="folder of real images that were not trained on, where there is no split")
    one.add_argument("--synthetic", help="folder of DICOM or picture files to measure instead of generating")
    one.add_argument("--count", type=int, default=100, help="images to generate (default: 100)")
    one.add_argument("--modality", help="of what is generated (default: what each caption names)")
    one.add_argument("--strengths", type=float, nargs="+", default=[], help="of image-to-image (default: none)")
    one.add_argument("--source-count", type=int, default=20, help="sources a strength (default: 20)")
    one.add_argument("--network", default="thumbnail", help="thumbnail, or a feature network (default: %(default)s)")
    one.add_argument("--pairs", help="PNG of the nearest pairs; it shows real people and must lie outside the project")
    one.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    one.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    one.add_argument("--batch", type=int, default=4, help="images a call (default: 4)")
    one.add_argument("--cache", help="folder that keeps images, so that an interrupted run goes on")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("sheet", parents=[made, seeded], help="contact sheet of generated images")
    one.add_argument("--rows", type=int, default=5)
    one.add_argument("--columns", type=int, default=8)
    one.add_argument("--blind", action="store_true", help="shuffled and without captions; the answers are in the JSON")
    one.add_argument("--varied", action="store_true", help="word the captions anew instead of the packs' plain text")
    one.add_argument("--out", required=True, help="PNG or JPEG to write; the prompts go to a JSON beside it")

    one = commands.add_parser("curve", parents=[drawn, seeded], help="KID against hours of training")
    one.add_argument("--models", nargs="+", required=True, help="copies of the base, each with its training.json")
    one.add_argument("--count", type=int, default=50, help="images a modality and copy (default: 50)")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser(
        "utility", parents=[made, pair], help="CNNs trained on real, synthetic and both, tested on real"
    )
    one.add_argument("--domains", nargs="+", default=["brain-tumour", "blood-cell", "lung-ct", "chest-xray"])
    one.add_argument("--count", type=int, default=160, help="synthetic images a domain (default: 160)")
    one.add_argument("--families", nargs="+", default=["vgg19"], help="also: densenet121, resnet50 (default: vgg19)")
    one.add_argument("--no-augment", dest="augment", action="store_false", help="train on the images as they are")
    one.add_argument("--regimes", nargs="+", default=["real", "synthetic", "both", "duplicated"], help="also: shuffled")
    one.add_argument("--curve", type=int, nargs="*", help="counts of synthetic images (default: a quarter and half)")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default: 0 1 2 3 4)")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("faithfulness", parents=[made, seeded], help="does an image show all that was asked for")
    one.add_argument("--groups", nargs="+", default=argparse.SUPPRESS, help="of prompts (default: all there are)")
    one.add_argument("--adapter", metavar="A[:W]", nargs="+", default=[], help="with adapters, named as for `generate`")
    one.add_argument("--count", type=int, default=48, help="prompts a group (default: 48)")
    one.add_argument("--draw", type=int, default=1, help="images a prompt, of which the best is kept (default: 1)")
    one.add_argument("--keep", help="folder for the kept images")
    one.add_argument("--synthetic", help="folder of DICOM files, or of pictures and a metadata.csv with their prompts")
    one.add_argument("--varied", action="store_true", help="word the captions anew instead of the packs' plain text")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("explain", parents=[made, pair], help="LIME: where a classifier looks")
    one.add_argument("--seed", type=int, default=0, help="of the classifier and of which images are shown (default: 0)")
    one.add_argument("--domains", nargs="+", default=["brain-tumour", "tuberculosis"])
    one.add_argument("--count", type=int, default=8, help="real and synthetic images a class (default: 8)")
    one.add_argument("--family", default="vgg19", help="vgg19, densenet121 or resnet50 (default: %(default)s)")
    one.add_argument("--segments", type=int, default=48, help="superpixels an image, about (default: 48)")
    one.add_argument("--samples", type=int, default=200, help="questions an image (default: 200)")
    one.add_argument("--sheets", help="folder for the sheets, which show real people (default: where the JSON goes)")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("volumes", parents=[seeded], help="diversity, distance, sizes, copies, segmenters")
    one.add_argument("--data", required=True, help="pack of real volumes with label maps")
    one.add_argument("--model", default="pipeline/volume", help="folder or Hub id (default: %(default)s)")
    one.add_argument("--count", type=int, default=150, help="volumes to generate (default: 150)")
    one.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    one.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    one.add_argument("--pairs", type=int, default=300, help="for the similarity within a set (default: 300)")
    one.add_argument("--real-counts", type=int, nargs="*", default=[8, 16, 32], help="beside all (default: 8 16 32)")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings (default: 0 1 2)")
    one.add_argument("--updates", type=int, default=400, help="of a segmenter's training (default: 400)")
    one.add_argument("--cache", help="folder that keeps volumes and segmenters, so that an interrupted run goes on")
    one.add_argument("--out", required=True, help="JSON to write; a JPEG of generated volumes goes beside it")

    one = commands.add_parser("watermark", parents=[made, seeded], help="is the mark found, and in nothing else")
    one.add_argument("--count", type=int, default=500, help="real images, each marked and not (default: 500)")
    one.add_argument("--generated", type=int, default=60, help="images to generate; 0 for none (default: 60)")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("burned-in", parents=[seeded], help="is text that is burned into images found")
    one.add_argument("--data", default="../shared/data/images", help="folder with the packs (default: %(default)s)")
    one.add_argument("--packs", nargs="+", help="which (default: all)")
    one.add_argument("--count", type=int, default=100, help="images a pack (default: 100)")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("stacks", parents=[seeded], help="do slices made one by one make a volume?")
    one.add_argument("--images", nargs="+", required=True, help="folders of a series, NIfTI, or .npz of a pack")
    one.add_argument("--prompts", nargs="+", required=True, help="one for each image")
    one.add_argument("--strengths", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    one.add_argument("--slices", type=int, default=24, help="from the middle of each volume (default: 24)")
    one.add_argument(
        "--positions", help="pack of brain volumes of several people; to see if a prompt can place a slice"
    )
    one.add_argument("--count", type=int, default=4, help="seeds at each position (default: 4)")
    one.add_argument("--model", default="pipeline")
    one.add_argument("--out", type=Path, required=True, help="JSON to write; a JPEG goes beside it")
    one = commands.add_parser("hostile", parents=[seeded], help="damaged and malicious files at every door")
    one.add_argument("--count", type=int, default=2000, help="files (default: 2000)")
    one.add_argument("--doors", nargs="+", help="which (default: all)")
    one.add_argument("--data", nargs="+", default=[], help="folders of files to try as they are, and to damage")
    one.add_argument("--seconds", type=float, default=30, help="for one file, at most (default: 30)")
    one.add_argument("--keep", help="folder for the files that crashed, leaked, or took too much")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("load", parents=[model, seeded], help="the app under many clients at once, on loopback")
    one.add_argument("--clients", type=int, default=30, help="(default: 30)")
    one.add_argument("--seconds", type=float, default=600, help="how long they ask (default: 600)")
    one.add_argument("--steps", type=int, default=2, help="denoising steps of a request (default: 2)")
    one.add_argument("--keep", type=int, default=600, help="seconds that the server keeps files (default: 600)")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("survive", parents=[model, seeded], help="a list of prompts, killed over and over")
    one.add_argument("--count", type=int, default=2000, help="images (default: 2000)")
    one.add_argument("--kills", type=int, default=20, help="(default: 20)")
    one.add_argument("--steps", type=int, default=1, help="denoising steps of each image (default: 1)")
    one.add_argument("--workers", type=int, default=1, help="processes of the run that is killed (default: 1)")
    one.add_argument("--no-faults", dest="faults", action="store_false", help="leave out full disks and the like")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("replays", help="make again what README and cards show, and compare")
    one.add_argument("--readme", default="README.md", help="(default: %(default)s)")
    one.add_argument("--no-cards", dest="cards", action="store_false", help="the README alone")
    one.add_argument("--out", required=True, help="JSON to write")

    one = commands.add_parser("report", help="one HTML page of all results in a folder, what failed first")
    one.add_argument("--results", default="evaluation/results", help="folder of JSON files (default: %(default)s)")
    one.add_argument("--out", default="build/report/report.html", help="page to write (default: %(default)s)")

    one = commands.add_parser("history", help="keep the headline figures beside those of earlier rounds")
    one.add_argument("--label", required=True, help="what was changed, in a few words")
    one.add_argument("--results", type=Path, default=Path("evaluation/results"), help="folder of JSON files")
    one.add_argument("--out", default="evaluation/results/history.json", help="JSON to add to (default: %(default)s)")

    one = commands.add_parser("table", help="put the results into the README")
    one.add_argument("--results", type=Path, default=Path("evaluation/results"), help="folder of JSON files")
    one.add_argument("--training", type=Path, default=Path("pipeline/training.json"), help="the base's record")
    one.add_argument("--readme", type=Path, default=Path("README.md"), help="file to change")
    return parser
