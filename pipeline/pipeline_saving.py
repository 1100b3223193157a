"""Saving a pipeline, in a folder or on the Hub, so that it loads in other code: its code files go with it.

diffusers saves the parts of a model and no code; what it writes cannot be loaded without this repository. It also
reads a custom pipeline's code file by file: the pipeline's own, and those that it imports directly by a dot.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from diffusers.utils.dynamic_modules_utils import get_relative_imports
from huggingface_hub import HfApi, ModelCard, ModelCardData

from . import adapter_names, pipeline_memorisation

# What the folder is as a package and a command; the pipeline itself does not need it.
COMMAND_FILES = (
    *("__init__.py", "__main__.py", "batch.py", "batch_csv.py", "batch_maker.py", "batch_ray.py", "commands.py"),
    *("given_values.py", "guarded_child.py", "guarded_reading.py", "replaying.py", "verification.py"),
    *("verification_added.py", "verification_result.py", "volume_command.py", "volume_dicom.py", "volume_files.py"),
    *("volume_image.py", "volume_input.py", "volume_models.py", "volume_nifti.py", "volume_pictures.py"),
    *("volume_replaying.py", "volume_segmentation.py"),
)

_CARD = """
# {title}

A pipeline that draws **synthetic** medical images and writes each as a valid DICOM file. Its images are for research
and teaching, never for diagnosis; each says that it is synthetic, in its header and in its text.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)
pipe("axial T1 brain MRI with contrast, meningioma", seed=7).dicoms[0].save_as("mr.dcm")
```
"""


class SavingMixin:
    """What a pipeline of diffusers gets on top; stands before it among the base classes."""

    # Given by the pipeline.
    config: Any
    _layers: Any
    model_memorisation_index: Any

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Read a `model_index.json`; its `["pipeline", name]` needs no code to be fetched when the class is at hand."""
        index = super()._dict_from_json_file(json_file)  # type: ignore[misc]
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as diffusers does, and make the folder load elsewhere: index and code files go with it.

        Parameters
        ----------
        save_directory
            Made where it does not exist.
        safe_serialization, variant, max_shard_size
            As in diffusers; nothing but safetensors is written.
        push_to_hub
            Also push to the Hub what was saved, and nothing else that is in the folder.
        **kwargs
            For the push: `repo_id` (by default the folder's name), `commit_message`, `private`, `token`, `create_pr`.

        Raises
        ------
        ValueError
            Adapters are loaded, or something else than safetensors is asked for.
        """
        hub = {k: kwargs.pop(k) for k in ("repo_id", "commit_message", "private", "token", "create_pr") if k in kwargs}
        if hub and not push_to_hub:
            raise ValueError(f"`{next(iter(hub))}` is given, but `push_to_hub` is False; allowed is True")
        if not safe_serialization:
            raise ValueError("`safe_serialization` is False; allowed is True, as other files can run code when loaded")
        if self._layers():
            raise ValueError(
                "adapters are loaded, and a saved model cannot hold them; call `unload_lora_weights()` first, and "
                "`fuse_lora()` before that to make them part of the model"
            )
        memorised = self.model_memorisation_index()
        super().save_pretrained(  # type: ignore[misc]
            save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs
        )
        folder = Path(save_directory)
        code, name = self._code()
        for source in code:
            if source.resolve().parent != folder.resolve():
                _write_whole(folder / source.name, source.read_bytes())
        path = folder / "model_index.json"
        index = json.loads(path.read_text(encoding="utf-8"))
        index["_class_name"] = [code[0].stem, name]
        index.pop("_name_or_path", None)
        _write_whole(path, (json.dumps(index, indent=2) + "\n").encode())
        if memorised is not None:
            memorised.save(folder / pipeline_memorisation.INDEX_NAME)
        if push_to_hub:
            repo_id = hub.pop("repo_id", folder.resolve().name)
            self.push_to_hub(repo_id, variant=variant, max_shard_size=max_shard_size, **hub)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> str:
        """Push the pipeline with its code to a model repository, in one commit; what is there already makes none.

        Parameters
        ----------
        repo_id
            ORG/NAME, or NAME in one's own namespace; made where it does not exist. A card that is there stays.
        commit_message, private, token, create_pr, safe_serialization, variant, max_shard_size
            As in diffusers.

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        ValueError
            As `save_pretrained`.
        OSError
            Of `huggingface_hub`: the Hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, safe_serialization, variant, max_shard_size)
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if not api.file_exists(repo_id, "README.md"):
                (folder / "README.md").write_text(self._card(repo_id), encoding="utf-8")
            message = commit_message or f"Upload {type(self).__name__}"
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, create_pr=create_pr
            ).commit_url

    def _code(self) -> tuple[list[Path], str]:
        """The code files to save, the pipeline's own first, and the name of the class in it."""
        here = Path(__file__).parent
        own, name = here / "pipeline.py", "SyntheticDicomPipeline"
        try:
            file = Path(inspect.getfile(type(self)))
        except (OSError, TypeError):  # a class typed into an interpreter
            file = Path()
        if file.parent.resolve() == here.resolve():
            own, name = file, type(self).__name__
        else:
            logging.getLogger(__name__).warning(
                "%s is a class of yours outside the pipeline's folder: saved as %s, without it",
                type(self).__name__,
                name,
            )
        # In diffusers' cache of code, which holds the files of other models too, these are missing.
        names = [f"{module}.py" for module in get_relative_imports(own)] + list(COMMAND_FILES)
        rest = sorted({here / name for name in names if (here / name).is_file() and (here / name).stat().st_size})
        return [own, *(path for path in rest if path != own)], name

    def _card(self, repo_id: str) -> str:
        origin = str(self.config.get("_name_or_path") or "")
        data = ModelCardData(
            library_name="diffusers",
            pipeline_tag="text-to-image",
            tags=["text-to-image", "diffusers", "medical", "dicom", "synthetic"],
            base_model=origin if adapter_names.is_hub_id(origin) and origin != repo_id else None,
        )
        return str(
            ModelCard(f"---\n{data.to_yaml()}\n---\n{_CARD.format(title=repo_id.split('/')[-1], repo_id=repo_id)}")
        )


def _write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)
