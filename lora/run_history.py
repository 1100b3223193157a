"""What a run's validations decide: which weights are kept, when plain denoising gives way to rounds, when to stop."""

from __future__ import annotations

import math
from typing import Any

from .config import AdapterConfig

COPIES_ALLOWED = 0.25  # share of the samples


class RunHistory:
    """The lines of the log that validations wrote; those at the end of a round have a `round`, counted from 1.

    Everything here follows from them and the settings alone, so that a resumed run decides as an unbroken one.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config
        self.records: list[dict[str, Any]] = []

    def copying(self, record: dict[str, Any]) -> bool:
        """Whether a validation found more copies than allowed, and more than the bare base makes (the first line)."""
        return record["copies"] > max(COPIES_ALLOWED * record["samples"], self.records[0]["copies"])

    def _plain(self) -> list[dict[str, Any]]:
        return [record for record in self.records if "round" not in record]

    def _best_plain(self) -> dict[str, Any] | None:
        """Least loss, or the last where no images are held out."""
        sound = [record for record in self._plain()[1:] if not self.copying(record)]
        if not sound:
            return None
        return sound[-1] if sound[-1]["validation_loss"] is None else min(sound, key=lambda r: r["validation_loss"])

    def best(self) -> dict[str, Any] | None:
        """The validation whose weights are kept: that of the last round, before any round that of the least loss."""
        rounds = [record for record in self.records if "round" in record and not self.copying(record)]
        return rounds[-1] if rounds else self._best_plain()

    def _plain_stop(self) -> str | None:
        """Why plain denoising ended; None while it goes on."""
        plain, best = self._plain(), self._best_plain()
        if best is not None and len(plain) - 1 - plain.index(best) >= self.config.patience:
            return "validation loss no longer falls"
        return "all steps done" if plain and plain[-1]["step"] >= self.config.steps else None

    def rounds_begin(self) -> int | None:
        """Step at which plain denoising ended and the rounds began; None before, and where none are asked for."""
        if not self.config.rounds or self._plain_stop() is None:
            return None
        return int(self._plain()[-1]["step"])

    def rounds_done(self, step: int) -> int:
        """How many rounds are done after so many steps."""
        begun = self.rounds_begin()
        return 0 if begun is None else (step - begun) // self.config.round_steps

    def validation_due(self, step: int) -> bool:
        """Whether to validate after this step."""
        begun = self.rounds_begin()
        if begun is not None:  # at the end of each round
            return (step - begun) % self.config.round_steps == 0
        return step % self.config.validate_every == 0 or step == self.config.steps

    def stop_reason(self, step: int) -> str | None:
        """Why training ends after this step; None while it goes on."""
        if len(self.records) > 1 and self.copying(self.records[-1]):
            return "samples copy training images"
        if not self.config.rounds:
            return self._plain_stop()
        begun = self.rounds_begin()
        last = math.inf if begun is None else begun + self.config.rounds * self.config.round_steps
        return "all rounds done" if step >= last else None
