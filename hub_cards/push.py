"""Folders to the Hub: one commit a repository, none where nothing changed, and a word on what went and what did not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from .build import Repository

KEPT = ".gitattributes"  # the Hub's own


class PushError(RuntimeError):
    """A push that broke off: what went, what failed and why, what was not tried."""


def push(
    repositories: Sequence[Repository],
    namespace: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    api: HfApi | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Push each folder to its repository, in order; what is there already is left as it is.

    Parameters
    ----------
    repositories
        As `build` gave them.
    namespace
        User or organisation on the Hub.
    private
        Make new repositories private; one that exists and is public is refused.
    revision
        Branch to push to; made where it does not exist.
    tag
        Name to give to what is there afterwards.
    api
        Client of the Hub; by default that of the environment.
    say
        Takes a line for each repository.

    Raises
    ------
    PushError
        One failed; those after it were not tried. Pushing again goes on where this ended.
    """
    api = api or HfApi(library_name="synthetic-dicom")
    done: list[str] = []
    for index, repository in enumerate(repositories):
        repo_id = f"{namespace}/{repository.name}"
        try:
            say(f"{repo_id}: {_push_one(api, repository, repo_id, private, revision, tag)}")
        except Exception as error:  # of the Hub's client, of its HTTP library, of the disk
            rest = [other.name for other in repositories[index + 1 :]]
            raise PushError(
                f"{repo_id} failed: {' '.join(str(error).split()).rstrip('.') or type(error).__name__}. "
                f"Pushed before it: {', '.join(done) or 'nothing'}. Not tried: {', '.join(rest) or 'nothing'}. "
                "The same command again goes on from here."
            ) from error
        done.append(repository.name)


def _push_one(
    api: HfApi, repository: Repository, repo_id: str, private: bool, revision: str | None, tag: str | None
) -> str:
    """Push one folder; says what was done."""
    kind = repository.repo_type
    sdk = "gradio" if kind == "space" else None
    # Of a repository that exists nothing is asked: the token may be allowed to push to it and not to make one.
    if not api.repo_exists(repo_id, repo_type=kind):
        api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True, space_sdk=sdk)
    elif private and not api.repo_info(repo_id, repo_type=kind).private:
        raise ValueError("`private` is True, but the repository exists and is public")
    local = {path.relative_to(repository.folder).as_posix(): path for path in repository.files()}
    refs = api.list_repo_refs(repo_id, repo_type=kind)
    if tag and any(ref.name == tag for ref in refs.tags):
        if _differences(api, repo_id, kind, tag, local) == ([], []):
            return f"unchanged, tag {tag} is there"
        raise ValueError(f"`tag` is {tag!r}, which names other content already; give another one")
    if revision and all(ref.name != revision for ref in refs.branches):
        api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
    changed, gone = _differences(api, repo_id, kind, revision, local)
    words = "unchanged"
    if changed or gone:
        api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, local[name]) for name in changed),
                *(CommitOperationDelete(name) for name in gone),
            ],
            commit_message=f"Synthetic DICOM: {len(changed)} files changed, {len(gone)} removed",
            repo_type=kind,
            revision=revision,
        )
        words = f"{len(changed)} files pushed, {len(gone)} removed"
    if tag:
        api.create_tag(repo_id, tag=tag, repo_type=kind, revision=revision)
        words += f", tagged {tag}"
    return words


def _differences(
    api: HfApi, repo_id: str, repo_type: str, revision: str | None, local: dict[str, Path]
) -> tuple[list[str], list[str]]:
    """Names of files that are new or other than on the Hub, and of those on the Hub that are here no more."""
    tree = api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=revision)
    remote = {file.path: file for file in tree if isinstance(file, RepoFile)}
    changed = [name for name, path in local.items() if name not in remote or not _same(path, remote[name])]
    return changed, sorted(name for name in remote if name not in local and name != KEPT)


def _same(path: Path, remote: RepoFile) -> bool:
    """Compare a file with the hash that the Hub keeps: SHA-256 of large and binary ones, git's of the rest."""
    size = path.stat().st_size
    if size != remote.size:
        return False
    with path.open("rb") as file:
        if remote.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == remote.lfs.sha256
        return hashlib.sha1(b"blob %d\0" % size + file.read(), usedforsecurity=False).hexdigest() == remote.blob_id
