"""Pushing a finished adapter's folder to the Hub: weights, `training.json`, card and samples, in one commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

from pipeline.adapter_names import is_hub_id
from pipeline.pipeline_memorisation import INDEX_NAME

from .adapter_card import PLACE
from .run_folder import WEIGHTS

SAMPLES = "samples"
_MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class PushError(Exception):
    """The adapter is whole on disk, but did not reach the Hub."""


def push_adapter(folder: Path, repo_id: str, *, private: bool | None = None, base: str | None = None) -> str:
    """Push what others need of an adapter, neither checkpoint nor log; what is there already makes no commit.

    Parameters
    ----------
    folder
        The finished adapter.
    repo_id
        ORG/NAME; a model repository, made where it does not exist.
    private
        Whether a new repository is private; by default as the account's settings say.
    base
        What the adapter was trained on; the card names it where it is a Hub id.

    Returns
    -------
    str
        Address of the repository.

    Raises
    ------
    PushError
        The Hub refused or could not be reached, or the repository is public and was to be private.
    """
    files = [folder / name for name in (WEIGHTS, "training.json", "README.md")]
    files += [folder / INDEX_NAME] if (folder / INDEX_NAME).is_file() else []  # none in adapters of before
    files += sorted((folder / SAMPLES).glob("*.jpg"))
    try:
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        contents["README.md"] = card_for_hub(contents["README.md"].decode(), repo_id, base).encode()
        api = HfApi()
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise PushError("the repository exists and is public")
        stale = [n for n in api.list_repo_files(repo_id) if n.startswith(f"{SAMPLES}/") and n not in contents]
        api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Adapter {folder.name}",
        )
    except Exception as error:  # of the Hub's client, of its HTTP library, of the disk
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PushError(f"the adapter is whole in {folder}, but it was not pushed to {repo_id}: {reason}") from error
    return str(address)


def card_for_hub(text: str, repo_id: str, base: str | None) -> str:
    """The card as the Hub shows it: it names its own address, and a base only by what can be one's name there."""
    card = ModelCard(text.replace(PLACE, repo_id))
    data: Any = card.data
    if base is not None and is_hub_id(base):
        data.base_model = base
    if not _MODEL_ID.fullmatch(str(data.base_model)):  # the Hub refuses a card with such a one
        data.base_model = data.base_model_relation = None
    return str(card)
