"""The command line: `python -m hub_cards.publish --namespace ORG` builds what `--push` then uploads.

Without `--push` nothing goes over the network. Exit status 0; 1 if a push broke off; 2 with one line for bad input or
a number that no file holds.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from huggingface_hub import get_token

from .build import MODEL, ROOT, Project, build, repositories
from .cards import stale_results
from .facts import Facts

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        "python -m hub_cards.publish",
        description="Build the folders of the model, its adapters, a data set of samples and the Space, with cards "
        "whose numbers come from result files; with --push, upload them to the Hugging Face Hub.",
    )
    parser.add_argument("--namespace", required=True, metavar="ORG", help="your user or organisation on the Hub")
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "build" / "hub", help="folder (build/hub)")
    parser.add_argument("--push", action="store_true", help="upload; without it nothing leaves this machine")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these repositories only")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; made where it does not exist")
    parser.add_argument("--tag", metavar="TAG", help="name for what is pushed, for from_pretrained(revision=TAG)")
    parser.add_argument("--samples", metavar="N", type=int, default=4, help="images a modality in the data set (4)")
    return parser


def publish(options: argparse.Namespace) -> int:
    """Build, and push if that was asked for; returns the exit status."""
    for option in ("namespace", "revision", "tag"):
        name = getattr(options, option)
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError(f"`--{option}` is {name!r}; allowed are letters, digits, hyphens, underscores and dots")
    if options.push and not get_token():
        raise ValueError("`--push` needs a token of the Hub; run `hf auth login` or set HF_TOKEN")
    project = Project()
    repositories(project, options.out, options.only)  # a misspelt name is told before minutes of work
    built = build(project, options.namespace, options.out, only=options.only, samples=options.samples)
    for repository in built:
        if repository.name == MODEL:
            for file in stale_results(Facts(project.root, repository.folder)):
                print(f"warning: {file} was measured with another model than the one in pipeline/", file=sys.stderr)
        files = repository.files()
        print(f"{repository.folder}: {repository.repo_type}, {len(files)} files, {repository.size() / 1e6:.1f} MB")
    if not options.push:
        print("Nothing was uploaded: --push does that.")
        return 0
    from .push import PushError, push

    try:
        push(built, options.namespace, private=options.private, revision=options.revision, tag=options.tag)
    except PushError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    options = build_parser().parse_args(arguments)
    try:
        return publish(options)
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
