"""Synthetic medical images as valid DICOM: the importable package, and byte for byte the Hub's model repository."""

from typing import Any

from .dicom_files import write_files
from .dicom_input import InputImage, read_image, square
from .dicom_patient import Patient, Study
from .dicom_profiles import MODALITIES, PROFILES
from .dicom_provenance import Recipe, read_recipe
from .dicom_seal import sign
from .verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "MODALITIES",
    "PROFILES",
    "InputImage",
    "Patient",
    "Recipe",
    "Study",
    "SyntheticDicomPipeline",
    "SyntheticDicomPipelineOutput",
    "Verification",
    "read_image",
    "read_recipe",
    "replay",
    "sign",
    "square",
    "verify",
    "write_files",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; who only reads or writes DICOM need not wait for it.
    if name in ("SyntheticDicomPipeline", "SyntheticDicomPipelineOutput"):
        from .pipeline import SyntheticDicomPipeline, SyntheticDicomPipelineOutput

        return {c.__name__: c for c in (SyntheticDicomPipeline, SyntheticDicomPipelineOutput)}[name]
    if name == "replay":
        from .replaying import replay

        return replay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
