"""Where a synthetic image comes from: the recipe that makes it again, its UIDs, and the marks that say it is synthetic.

Nothing here reads a clock or a random source. The same recipe, patient and study give the same UIDs and dates on
every machine, whatever call the image was made in.
"""

import datetime
import hashlib
import json
import math
import uuid
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.uid import UID

from . import dicom_volume

VolumeRecipe = dicom_volume.VolumeRecipe

MARK = "SYNTHETIC"
NOT_FOR_DIAGNOSIS = "SYNTHETIC - NOT FOR DIAGNOSTIC USE"
MANUFACTURER = "Synthetic DICOM"

# The recipe is JSON of any length that a program reads. No standard attribute is meant for that: the comment
# attributes are for people and Contribution Description holds 1,024 characters. So it is an element of unlimited
# text (UT) in a private block. Archives must keep private elements of objects that they store; a viewer ignores them.
PRIVATE_GROUP = 0x0099
PRIVATE_CREATOR = "SYNTHETIC DICOM RECIPE"
_RECIPE_ELEMENT = 0x01

_FORMAT = 1
_LATER = ("copy_check", "watermark", "volume")  # recipes are as they were before there were these, where these are None
_LONG_STRING = 64
_SHORT_TEXT = 1024
LONGEST_TEXT = 2**20


@dataclass(frozen=True)
class CopyCheck:
    """What came of holding an image against the training images.

    Attributes
    ----------
    indexes : tuple of (name, sha256)
        Of the model and of each adapter: the indexes of their training images.
    score : float
        How far from the nearest training image, relative to where copies begin: below 1 is a copy.
    first_seed : int
        The seed that was asked for; the recipe's own is another one where the image was redrawn.
    redraws : int
        How often that happened; each time the image of the seed before was a copy.
    """

    indexes: tuple[tuple[str, str], ...]
    score: float
    first_seed: int
    redraws: int = 0

    def __post_init__(self) -> None:
        """Bring every field to one type."""
        pairs = tuple((str(a), str(b)) for a, b in _rows(self.indexes, "indexes", 2))
        for name, value in (("indexes", pairs), ("score", _number(self.score, "score"))):
            object.__setattr__(self, name, value)
        for name in ("first_seed", "redraws"):
            object.__setattr__(self, name, _whole(getattr(self, name), name))

    @property
    def is_copy(self) -> bool:
        """Whether the image is nearer to a training image than real images of other people are."""
        return self.score < 1

    def in_words(self) -> str:
        """Say it for the header."""
        times = f"{self.redraws} time" + ("s" if self.redraws != 1 else "")
        redrawn = f" Redrawn {times}: seed {self.first_seed} gave a copy of a training image." if self.redraws else ""
        if self.is_copy:
            return f"It may be a copy of an image that the model was trained on.{redrawn}"
        return f"Compared with the images that the model was trained on: no copy.{redrawn}"


@dataclass(frozen=True)
class Recipe:
    """Everything needed to make one image again.

    `versions` (pairs of library name and version), `copy_check`, and of `volume` the labels and what they have are
    recorded but are no part of `digest` and `request_digest`: neither an upgrade of a library nor a check that changes
    no pixel changes a UID.

    Attributes
    ----------
    prompt, negative_prompt : str
        What was asked for, and what was not wanted.
    modality : str
        Name of the profile.
    seed : int
        Seed of this one image.
    num_inference_steps : int
        Denoising steps.
    guidance_scale : float
        Weight of classifier-free guidance.
    scheduler : str
        Class name of the scheduler.
    height, width : int
        Size in pixels.
    model, model_sha256 : str
        Name and hash of the base model.
    adapters : tuple of (name, sha256, weight)
        Adapters that were active.
    strength : float, optional
        How far an input image was changed; None for text to image.
    input_sha256 : str, optional
        Hash of the input image's pixels.
    versions : tuple of (name, version)
        Libraries that made the image.
    copy_check : CopyCheck, optional
        Comparison with the training images; None, and not written, where there was none.
    watermark : str, optional
        Name of the invisible pattern in the pixels; None, and not written, where there is none.
    volume : VolumeRecipe, optional
        Of a volume; None, and not written, for an image. Height and width are then those of its slices.
    """

    prompt: str
    negative_prompt: str
    modality: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    height: int
    width: int
    model: str
    model_sha256: str
    adapters: tuple[tuple[str, str, float], ...] = ()
    strength: float | None = None
    input_sha256: str | None = None
    versions: tuple[tuple[str, str], ...] = ()
    copy_check: CopyCheck | None = None
    watermark: str | None = None
    volume: VolumeRecipe | None = None

    def __post_init__(self) -> None:
        """Bring every field to one type, so that 7 and 7.0 or a list and a tuple give the same digest."""
        for name in ("prompt", "negative_prompt", "modality", "scheduler", "model", "model_sha256"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` must be a string, not {getattr(self, name)!r}")
        for name in ("seed", "num_inference_steps", "height", "width"):
            self._set(name, _whole(getattr(self, name), name))
        self._set("guidance_scale", _number(self.guidance_scale, "guidance_scale"))
        if self.strength is not None:
            self._set("strength", _number(self.strength, "strength"))
        if self.input_sha256 is not None and not isinstance(self.input_sha256, str):
            raise ValueError(f"`input_sha256` must be a string or None, not {self.input_sha256!r}")
        if self.watermark is not None and not isinstance(self.watermark, str):
            raise ValueError(f"`watermark` must be a string or None, not {self.watermark!r:.80}")
        adapters = _rows(self.adapters, "adapters", 3)
        self._set("adapters", tuple((str(a), str(b), _number(weight, "adapters")) for a, b, weight in adapters))
        self._set("versions", tuple((str(a), str(b)) for a, b in _rows(self.versions, "versions", 2)))
        for name, kind in _PARTS.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                known = {field.name for field in fields(kind)}
                if set(value) != known:
                    raise ValueError(f"`{name}` must have the fields {', '.join(sorted(known))}")
                self._set(name, kind(**value))
            elif value is not None and not isinstance(value, kind):
                raise ValueError(f"`{name}` must be a {kind.__name__} or None, not {value!r:.80}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the way of a frozen dataclass to tidy its own fields

    def to_json(self) -> str:
        """Write the recipe as canonical JSON: ASCII, sorted keys, no spaces."""
        values = asdict(self)
        for name in _LATER:
            if values[name] is None:
                del values[name]
        return _canonical({"format": _FORMAT, **values})

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            If the text is no JSON object, or a field is missing, unknown or of a wrong type.
        """
        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError("the recipe is not JSON") from error
        if not isinstance(values, dict):
            raise ValueError("the recipe is not a JSON object")
        if (found := values.pop("format", None)) != _FORMAT:
            raise ValueError(f"the recipe has format {found!r}; this version reads format {_FORMAT}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"the recipe has unknown fields: {', '.join(unknown)}")
        if missing := sorted(known - set(values) - set(_LATER)):
            raise ValueError(f"the recipe lacks fields: {', '.join(missing)}")
        return cls(**values)

    def digest(self) -> str:
        """Give the SHA-256 of the recipe without `versions` and `copy_check`."""
        return self._digest_without()

    def request_digest(self) -> str:
        """Give that SHA-256 without `seed` too: equal for all images of one request. A volume is a request alone."""
        return self._digest_without("seed") if self.volume is None else self.digest()

    def _digest_without(self, *names: str) -> str:
        values = {name: value for name, value in asdict(self).items() if name not in (*names, "versions", "copy_check")}
        if values["watermark"] is None:
            del values["watermark"]
        if values["volume"] is None:
            del values["volume"]
        else:
            del values["volume"]["obtained"], values["volume"]["labels"]
        return hashlib.sha256(_canonical({"format": _FORMAT, **values}).encode()).hexdigest()


_PARTS: dict[str, type[CopyCheck] | type[VolumeRecipe]] = {"copy_check": CopyCheck, "volume": VolumeRecipe}


def digest_of(*parts: Any) -> str:
    """Give the SHA-256 of values that JSON can hold."""
    return hashlib.sha256(_canonical(list(parts)).encode()).hexdigest()


def uid_of(*parts: Any) -> UID:
    """Give the UID (2.25. and a UUID as a whole number) that belongs to these values and to no others."""
    digest = bytes.fromhex(digest_of("uid", *parts))
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def date_and_time_of(*parts: Any) -> tuple[datetime.date, datetime.time]:
    """Make up a date of the years 2000 to 2009 and a time of the working day."""
    number = int(digest_of("date", *parts)[:16], 16)
    day = datetime.date(2000, 1, 1) + datetime.timedelta(days=number % 3653)
    seconds = number // 3653 % 36000
    return day, (datetime.datetime(2000, 1, 1, 8) + datetime.timedelta(seconds=seconds)).time()


def marked(text: str | None) -> str:
    """Put the word SYNTHETIC before a description that lacks it."""
    if not text:
        return NOT_FOR_DIAGNOSIS
    return text if MARK in text.upper() else f"{MARK} - {text}"


def marked_name(name: str | None) -> str:
    """Put the word SYNTHETIC before the family name of a Person Name that lacks it.

    It is the family name because every work list shows that one: "Doe^Jane" becomes "SYNTHETIC Doe^Jane". Of a name
    in several scripts the first (alphabetic) one is marked.
    """
    if not name:
        return MARK
    if MARK in name.upper():
        return name
    return f"{MARK} {name}" if name[0] not in "^=" else f"{MARK}{name}"


def mark_synthetic(dataset: Dataset, recipe: Recipe) -> None:
    """Mark a dataset as synthetic, for programs and for people, and put the recipe into it.

    Sets Synthetic Data, an item of Contributing Equipment with the purpose "Synthesizing Equipment", Image Type
    DERIVED, the word SYNTHETIC in Patient's Name, Study and Series Description, Image Comments and Derivation
    Description, and the recipe as JSON in a private element.
    """
    dataset.SyntheticData = "YES"
    image_type = list(dataset.get("ImageType") or ["DERIVED", "SECONDARY"])
    dataset.ImageType = ["DERIVED", *image_type[1:]]
    dataset.PatientName = marked_name(str(dataset.get("PatientName", "")))
    dataset.StudyDescription = marked(dataset.get("StudyDescription"))
    dataset.SeriesDescription = marked(dataset.get("SeriesDescription"))
    dataset.ImageComments = marked(dataset.get("ImageComments"))
    source = "a text prompt" if recipe.input_sha256 is None else "a text prompt and an input image"
    dataset.DerivationDescription = (
        f"{MARK}: made by a diffusion model from {source}. No patient was examined. Patient, dates, geometry and "
        "acquisition values are made up or nominal."
    )
    if recipe.copy_check is not None:
        dataset.DerivationDescription += " " + recipe.copy_check.in_words()
    dataset.ContributingEquipmentSequence = [_synthesizing_equipment(recipe)]
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    dataset.add_new(block.get_tag(_RECIPE_ELEMENT), "UT", recipe.to_json())


def read_recipe(dataset: Dataset) -> Recipe | None:
    """Read the recipe out of a dataset; None where there is none.

    Raises
    ------
    ValueError
        If there is a recipe that cannot be understood.
    """
    text = private_text(dataset, _RECIPE_ELEMENT)
    return None if text is None else Recipe.from_json(text)


def private_text(dataset: Dataset, element: int) -> str | None:
    """Give the text of one of our private elements; None where it is absent.

    Raises
    ------
    ValueError
        If it cannot be read, or is longer than any that we write.
    """
    value, read = None, True
    try:
        # By its tag: in a copied dataset pydicom's block is still that of the old one.
        tag = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR).get_tag(element)
        raw = dataset.get_item(tag)
        # Looked at before it becomes an object: a sequence would become millions.
        is_text = not isinstance(raw, RawDataElement) or raw.VR in ("UT", "LT", "UN", "OB", None)
        value = dataset[tag].value if is_text and len(getattr(raw, "value", None) or b"") <= 4 * LONGEST_TEXT else None
    except KeyError:
        return None
    except Exception:  # hostile elements raise anything when they are first looked at
        read = False
    if not read:  # outside the handler, so that what pydicom says of the file is not chained to it
        raise ValueError("the recipe's elements are damaged and cannot be read")
    if value is None:
        raise ValueError("the recipe is no text, or longer than any that is written here")
    if isinstance(value, bytes):  # an archive that does not know the element hands it back as UN
        value = value.decode("ascii", "replace").rstrip("\0 ")
    if len(str(value)) > LONGEST_TEXT:
        raise ValueError(f"the recipe is longer than the {LONGEST_TEXT} characters allowed")
    return str(value)


def _synthesizing_equipment(recipe: Recipe) -> Dataset:
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = header_text(recipe.model, _LONG_STRING) or MANUFACTURER
    versions = [header_text(f"{name} {version}", _LONG_STRING) for name, version in recipe.versions]
    if versions:
        item.SoftwareVersions = versions
    text = (
        f"{MARK} image of a diffusion model. Recipe SHA-256 {recipe.digest()}, model SHA-256 "
        f"{header_text(recipe.model_sha256, _LONG_STRING)}, seed {recipe.seed}."
    )
    for i, (name, sha256, weight) in enumerate(recipe.adapters):
        more = f" Adapter {header_text(name, _LONG_STRING)}, weight {weight:g}, SHA-256 {header_text(sha256, 64)}."
        rest = f" {len(recipe.adapters) - i} more adapters in the recipe."
        if len(text) + len(more) + len(rest) > _SHORT_TEXT:
            text += rest
            break
        text += more
    item.ContributionDescription = text
    return item


def header_text(text: str, length: int) -> str:
    """Make a text fit for a string attribute: no backslash or control characters, and not too long."""
    return "".join(c if c.isprintable() and c != "\\" else " " for c in text)[:length].strip()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"`{name}` must be a whole number, not {value!r}")
    return int(value.__index__())


def _number(value: Any, name: str) -> float:
    try:
        if not isinstance(value, bool | str) and math.isfinite(float(value)):
            return float(value) + 0.0  # no negative zero
    except (TypeError, OverflowError):  # no number; a whole number beyond all floats
        pass
    raise ValueError(f"`{name}` must be a finite number, not {value!r:.80}")


def _rows(value: Any, name: str, length: int) -> list[tuple[Any, ...]]:
    try:
        rows = [tuple(row) for row in value]
    except TypeError:
        rows = [()]
    if any(len(row) != length for row in rows):
        raise ValueError(f"`{name}` must be rows of {length} values, not {value!r}")
    return rows
