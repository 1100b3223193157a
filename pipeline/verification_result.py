"""What `verify` finds in a file, and how that is said."""

from __future__ import annotations

from dataclasses import dataclass

from . import dicom_provenance

Recipe = dicom_provenance.Recipe


@dataclass(frozen=True)
class Verification:
    """What was found in one file.

    Attributes
    ----------
    kind : {"DICOM", "PNG", "JPEG"}
        What was read.
    made_here : bool
        There is a recipe, and the UIDs follow from it or the digest fits it.
    recipe : Recipe, optional
        The recipe, where there is a sound one.
    recipe_state : {"unaltered", "altered", "no digest", "missing", "not readable"}
        Of the recipe, by the digest.
    pixels : {"unaltered", "altered", "no digest", "not readable"}
        Of the pixels, by the digest.
    uids : {"follow", "differ", "not known"}
        Whether the UIDs follow from the recipe and the header; not known without a recipe, or of a PNG.
    signature : {"none", "not checked", "valid", "wrong", "other key"}
        Not checked where there is one, but no key was given.
    missing_marks : tuple of str
        Which of the marks that every file of ours has are gone.
    stripped, changed : tuple of str
        Attributes that are missing or empty, and such with other values than this version would write.
    traces : tuple of str
        What points here where the recipe is gone.
    given : tuple of str, optional
        Which patient and study values were given for the image; None where the UIDs do not tell.
    sop_instance_uid : str
        Of a DICOM file.
    wants_signature : bool
        A key was given: without a valid signature the file is not `ok`.
    watermark : {"found", "not found", "not looked for"}
        In the pixels, whatever is left of the header; not looked for in several frames, or where they cannot be read.
    added : tuple of str
        What is in none of ours and changes what a viewer shows (an overlay, a lookup table, a second picture): with
        any, the file is not `ok`.
    also_added : tuple of str
        What else is in none of ours, as archives add it; it changes nothing that is shown.
    """

    kind: str
    made_here: bool
    recipe: Recipe | None
    recipe_state: str
    pixels: str
    uids: str
    signature: str
    missing_marks: tuple[str, ...]
    stripped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    given: tuple[str, ...] | None = None
    sop_instance_uid: str = ""
    wants_signature: bool = False
    watermark: str = "not looked for"
    added: tuple[str, ...] = ()
    also_added: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Made here, marked, and nothing altered; without its digest a file cannot tell, and is not."""
        return (
            self.made_here
            and not self.missing_marks
            and not self.added
            and self.uids in (("follow",) if self.kind == "DICOM" else ("not known",))
            and self.pixels == "unaltered"
            and self.recipe_state == "unaltered"
            and (self.signature == "valid" if self.wants_signature else self.signature in ("none", "not checked"))
        )

    def in_words(self) -> list[str]:
        """Say it, a line a finding."""
        lines = ["made here: " + ("yes" if self.made_here else "perhaps" if self.traces else "no")]
        if self.traces:
            lines[0] += f", by {', '.join(self.traces)}; but there is no sound recipe"
        gone = ", ".join(self.missing_marks)
        lines.append("marked as synthetic: " + (f"not wholly, missing {gone}" if gone else "wholly"))
        untold = "no digest, so it cannot be told whether they were altered"
        lines.append(f"pixels: {untold if self.pixels == 'no digest' else self.pixels}")
        lines.append(f"recipe: {self.recipe_state}")
        lines.append(f"watermark: {self._watermark_in_words()}")
        if self.kind == "DICOM":
            lines.append(f"UIDs: {'follow from the recipe' if self.uids == 'follow' else self.uids}")
        if self.signature != "none" or self.wants_signature:
            lines.append(f"signature: {self.signature}")
        if self.stripped:
            lines.append(f"taken out: {', '.join(self.stripped)}")
        if self.changed:
            lines.append(f"other than this version writes: {', '.join(self.changed)}")
        if self.added:
            lines.append(f"added, and changes what is shown: {', '.join(self.added)}")
        if self.also_added:
            lines.append(f"added, and changes nothing that is shown: {', '.join(self.also_added)}")
        return lines

    def _watermark_in_words(self) -> str:
        if self.watermark == "found":
            return "found, so the image is synthetic"
        if self.watermark == "not looked for":
            return "not looked for, as there are several frames, or no pixels that can be read"
        return "not found, though the recipe has one" if self.recipe and self.recipe.watermark else "not found"
