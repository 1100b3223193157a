"""Was an image altered? A digest over its pixels and its recipe, and a signature with a key of the user's.

The digest is taken of decoded pixel values and not of bytes, so that it holds after lossless recompression and in every
encoding of the header. It lies beside the recipe, in the same private block. The standard's own Digital Signatures
(PS3.15 annex B, PS3.3 C.12.1.1.3) do not serve: they want an X.509 certificate of the signer inside each object, and
what they sign are encoded bytes, so that an archive that recompresses an image breaks them.

The digest shows accidents and careless editing: anybody who alters an image can reckon a new one. The signature
(HMAC-SHA256) shows intent too, to those who have the key; and whoever has the key can also sign.
"""

import hashlib
import hmac
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset

from . import dicom_limits, dicom_provenance

SMALLEST_KEY, LARGEST_KEY = 16, 4096
_ELEMENT = 0x02
_FORMAT = 1
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Seal:
    """What an image says of itself.

    Attributes
    ----------
    pixels, recipe : str
        SHA-256 of `pixel_digest` and `recipe_digest`, in hexadecimal.
    signature : str, optional
        HMAC-SHA256 over both, in hexadecimal.
    key : str, optional
        Which key it was: a digest of it, of 16 hexadecimal digits.
    """

    pixels: str
    recipe: str
    signature: str | None = None
    key: str | None = None

    def to_json(self) -> str:
        """Write it as canonical JSON."""
        values = {"format": _FORMAT, **{name: value for name, value in vars(self).items() if value is not None}}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Seal":
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            It is something else.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != _FORMAT:
                raise ValueError
            seal = cls(**values)
            hashes = [seal.pixels, seal.recipe, *([] if seal.signature is None else [seal.signature])]
            if not all(isinstance(value, str) and _HEX.fullmatch(value) for value in hashes):
                raise ValueError
            if (seal.key is None) != (seal.signature is None) or not isinstance(seal.key, str | None):
                raise ValueError
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError("the digest cannot be understood") from error
        return seal

    def signed(self, key: bytes) -> "Seal":
        """Sign it."""
        return Seal(self.pixels, self.recipe, self._signature(key), key_name(key))

    def is_signed_by(self, key: bytes) -> bool:
        """Whether the signature was made with this key, over these digests."""
        return self.signature is not None and hmac.compare_digest(self.signature, self._signature(key))

    def _signature(self, key: bytes) -> str:
        message = f"synthetic-dicom {_FORMAT} {self.pixels} {self.recipe}"
        return hmac.new(check_key(key), message.encode(), "sha256").hexdigest()


def pixel_digest(pixels: np.ndarray, dataset: Dataset | None = None) -> str:
    """Give the SHA-256 of decoded pixel values, and of what makes Hounsfield units or an inverted picture of them.

    Parameters
    ----------
    pixels : numpy.ndarray
        Stored values, integers of shape (rows, columns), (rows, columns, 3) as RGB or (frames, rows, columns).
    dataset : pydicom.Dataset, optional
        Where the pixels come from; a picture has none.
    """
    slope, intercept, inverted = 1.0, 0.0, False
    if dataset is not None:
        group = dicom_limits.functional_group(dataset, 0, "PixelValueTransformationSequence")  # or itself
        given = [dicom_limits.number(group, name) for name in ("RescaleSlope", "RescaleIntercept")]
        slope, intercept = (1.0 if given[0] is None else given[0]), given[1] or 0.0
        inverted = dicom_limits.text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    meaning = json.dumps(["pixels", list(pixels.shape), slope + 0.0, intercept + 0.0, inverted])
    return hashlib.sha256(meaning.encode() + np.ascontiguousarray(pixels).astype("<i4").tobytes()).hexdigest()


def recipe_digest(recipe: dicom_provenance.Recipe) -> str:
    """Give the SHA-256 of the whole recipe, with versions and comparison."""
    return hashlib.sha256(recipe.to_json().encode()).hexdigest()


def seal_of(pixels: np.ndarray, recipe: dicom_provenance.Recipe, dataset: Dataset | None = None) -> Seal:
    """Reckon the digests of an image."""
    return Seal(pixel_digest(pixels, dataset), recipe_digest(recipe))


def write_seal(dataset: Dataset, seal: Seal) -> None:
    """Put it into a dataset, beside the recipe."""
    block = dataset.private_block(dicom_provenance.PRIVATE_GROUP, dicom_provenance.PRIVATE_CREATOR, create=True)
    dataset.add_new(block.get_tag(_ELEMENT), "UT", seal.to_json())  # a block of a copied dataset is still the old one's


def read_seal(dataset: Dataset) -> Seal | None:
    """Read it out of a dataset; None where there is none, as in files that were made before there were digests.

    Raises
    ------
    ValueError
        If there is one that cannot be understood.
    """
    text = dicom_provenance.private_text(dataset, _ELEMENT)
    return None if text is None else Seal.from_json(text)


def sign(dataset: Dataset, key: bytes) -> None:
    """Sign a dataset of `to_dataset`, in place.

    Raises
    ------
    ValueError
        If it holds no digest, or the key is shorter than 16 bytes.
    """
    seal = read_seal(dataset)
    if seal is None:
        raise ValueError("`dataset` holds no digest that could be signed; allowed are those of `to_dataset`")
    write_seal(dataset, seal.signed(key))


def check_key(key: bytes) -> bytes:
    """Give back a key of allowed length; a ValueError for any other."""
    if not isinstance(key, bytes) or not SMALLEST_KEY <= len(key) <= LARGEST_KEY:
        found = f"has {len(key)} bytes" if isinstance(key, bytes) else f"is of type {type(key).__name__}"
        raise ValueError(f"`key` {found}; allowed are {SMALLEST_KEY} to {LARGEST_KEY} bytes")
    return key


def read_key(path: str | os.PathLike[str]) -> bytes:
    """Read a key from a file; a line break at its end, which editors add, is no part of it.

    Raises
    ------
    ValueError
        If there is no such file, or the key is too short or too long.
    """
    if not Path(path).is_file() or Path(path).stat().st_size > 2 * LARGEST_KEY:
        raise ValueError(f"`key` must be the path of a file of {SMALLEST_KEY} to {LARGEST_KEY} bytes")
    return check_key(Path(path).read_bytes().rstrip(b"\r\n"))


def key_name(key: bytes) -> str:
    """Tell keys apart without telling them."""
    return hashlib.sha256(b"name of a key " + check_key(key)).hexdigest()[:16]
