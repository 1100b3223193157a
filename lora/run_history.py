"""What a run's validations decide: which weights are kept, when plain denoising gives way to rounds, when to stop."""

from __future__ import annotations

from typing import Any

from .config import AdapterConfig

COPIES_ALLOWED = 0.25  # share of the samples
MATCH_VALIDATIONS = 4  # of the steps that match features


class RunHistory:
    """The lines of the log that validations wrote.

    Those at the end of a round have a `round`, counted from 1, and those of matching a `matched`, the steps of it.
    Everything here follows from them and the settings alone, so that a resumed run decides as an unbroken one.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config
        self.records: list[dict[str, Any]] = []

    def copying(self, record: dict[str, Any]) -> bool:
        """Whether a validation found more copies than allowed, and more than the bare base makes (the first line)."""
        return record["copies"] > max(COPIES_ALLOWED * record["samples"], self.records[0]["copies"])

    def _plain(self) -> list[dict[str, Any]]:
        return [record for record in self.records if "round" not in record and "matched" not in record]

    def _best_plain(self) -> dict[str, Any] | None:
        """Least loss, or the last where no images are held out."""
        sound = [record for record in self._plain()[1:] if not self.copying(record)]
        if not sound:
            return None
        return sound[-1] if sound[-1]["validation_loss"] is None else min(sound, key=lambda r: r["validation_loss"])

    def best(self) -> dict[str, Any] | None:
        """The validation whose weights are kept.

        The nearest to the training images of those of matching, else that of the last round, else the least loss.
        """
        sound = [record for record in self.records if not self.copying(record)]
        if matched := [record for record in sound if "matched" in record]:
            return min(matched, key=lambda record: record["feature_distance"])
        rounds = [record for record in sound if "round" in record]
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

    def _rounds_end(self) -> int | None:
        """Step at which plain denoising and all rounds are done; None while they go on."""
        if self._plain_stop() is None:
            return None
        return int(self._plain()[-1]["step"]) + self.config.rounds * self.config.round_steps

    def matching_begins(self, step: int) -> int | None:
        """Step at which matching began; None where `step` is before it, and where none is asked for."""
        end = self._rounds_end()
        return end if self.config.match_steps and end is not None and step >= end else None

    def stage_of(self, step: int) -> dict[str, int]:
        """What the record of a validation after this step says of the stage: the rounds done, or the steps matched."""
        begun, matching = self.rounds_begin(), self.matching_begins(step)
        if matching is not None and step > matching:
            return {"matched": step - matching}
        if begun is not None and step > begun:
            return {"round": (step - begun) // self.config.round_steps}
        return {}

    def validation_due(self, step: int) -> bool:
        """Whether to validate after this step."""
        begun, matching = self.rounds_begin(), self.matching_begins(step)
        if matching is not None and step > matching:
            every = -(-self.config.match_steps // MATCH_VALIDATIONS)
            return (step - matching) % every == 0 or step - matching == self.config.match_steps
        if begun is not None:  # at the end of each round
            return (step - begun) % self.config.round_steps == 0
        return step % self.config.validate_every == 0 or step == self.config.steps

    def stop_reason(self, step: int) -> str | None:
        """Why training ends after this step; None while it goes on."""
        if len(self.records) > 1 and self.copying(self.records[-1]):
            return "samples copy training images"
        end = self._rounds_end()
        if end is None or step < end + self.config.match_steps:
            return None
        if self.config.match_steps:
            return "all matching done"
        return "all rounds done" if self.config.rounds else self._plain_stop()
