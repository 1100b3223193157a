"""Synthetic volumes with their label maps: the importable package, and the Hub's model repository for volumes."""

from typing import Any

__all__ = ["SyntheticDicomVolumePipeline", "SyntheticDicomVolumePipelineOutput"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; who only reads what covariates there are need not wait for it.
    if name in __all__:
        from . import volume_pipeline

        return getattr(volume_pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
