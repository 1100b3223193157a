"""Sound files to damage: one of every kind that a door takes, with identifiers planted wherever text can stand."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin
from pydicom import Dataset, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from pipeline.dicom_output import to_dataset
from pipeline.dicom_pixels import COMPRESSIONS, compress
from pipeline.dicom_profiles import PROFILES
from pipeline.dicom_provenance import Recipe

PLANTED = "Qx7Zleak"  # nothing that the project writes may hold it
PLANTED_NUMBER = "27182818284590452353"  # the same in UIDs, dates and numbers
_TEXT_VRS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_KEYWORDS = (
    *("PatientName", "PatientID", "PatientAddress", "OtherPatientNames", "PatientComments", "InstitutionName"),
    *("InstitutionAddress", "ReferringPhysicianName", "OperatorsName", "StationName", "StudyDescription", "StudyID"),
    *("SeriesDescription", "AccessionNumber", "ImageComments", "DeviceSerialNumber", "ProtocolName", "RetrieveURL"),
    *("PatientBirthName", "MilitaryRank", "EthnicGroup", "Occupation", "AdditionalPatientHistory", "StationAETitle"),
    *("RequestingPhysician", "PatientInsurancePlanCodeSequence", "RequestAttributesSequence", "TextString"),
)
_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "DeviceUID")


def plant(dataset: Dataset) -> None:
    """Put an identifier into every kind of text of a dataset: public, private, nested, UIDs and the file's meta."""
    for number, keyword in enumerate(_KEYWORDS):
        vr = dictionary_VR(keyword)
        if vr == "SQ":
            item = Dataset()
            item.PatientName, item.CodeMeaning = f"{PLANTED}^Nested", f"{PLANTED} {number}"
            setattr(dataset, keyword, [item])
        else:
            dataset.add_new(Tag(keyword), vr, f"{PLANTED}{number}".upper() if vr == "CS" else f"{PLANTED}{number}")
    for keyword in _UIDS:
        setattr(dataset, keyword, f"1.2.{PLANTED_NUMBER}.{len(keyword)}")
    dataset.PatientBirthDate = "19610412"
    block = dataset.private_block(0x0043, f"{PLANTED} CREATOR", create=True)
    for offset, vr in enumerate((*_TEXT_VRS, "UN", "OB")):
        text = f"https://host.invalid/{PLANTED}" if vr == "UR" else f"{PLANTED} {vr}"
        block.add_new(offset + 1, vr, text.upper() if vr == "CS" else text.encode() if vr in ("UN", "OB") else text)
    if getattr(dataset, "file_meta", None) is not None:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.SourceApplicationEntityTitle = PLANTED
        dataset.file_meta.PrivateInformationCreatorUID = UID(f"1.2.{PLANTED_NUMBER}")
        dataset.file_meta.PrivateInformation = PLANTED.encode()
    dataset.preamble = (PLANTED * 16).encode()[:128]


def file_of(dataset: Dataset, syntax: str | None = None) -> bytes:
    """Write a dataset, in another uncompressed syntax if told."""
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
    target = io.BytesIO()
    dcmwrite(target, dataset, enforce_file_format=True)
    return target.getvalue()


def dataset_of(profile: str = "chest-xray", rows: int = 48, columns: int = 40) -> Dataset:
    """A dataset as the pipeline writes it, recipe and all, before anything is planted."""
    recipe = Recipe(
        "chest X-ray", "", profile, 7, 20, 3.0, "DPMSolverMultistepScheduler", rows, columns, "base", "ab" * 32
    )
    ramp = np.linspace(0, 1, rows * columns, dtype=np.float32).reshape(rows, columns)
    return to_dataset(np.stack([ramp, 1 - ramp, ramp], -1), PROFILES[profile], recipe)


def dicom_seeds() -> Iterator[bytes]:
    """DICOM files: every object and syntax written here, and kinds that only others write."""
    for profile in PROFILES:
        dataset = dataset_of(profile)
        plant(dataset)
        yield file_of(dataset)
    for name in COMPRESSIONS:
        for profile in ("ct-chest", "blood-smear"):
            dataset = compress(dataset_of(profile), name)
            plant(dataset)
            yield file_of(dataset)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        dataset = _plain(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40))
        yield file_of(dataset, syntax)
    frames = _plain(np.arange(5 * 16 * 16, dtype=np.uint16).reshape(5, 16, 16))
    frames.NumberOfFrames = 5
    yield file_of(frames)
    palette = _plain(np.arange(16 * 16, dtype=np.uint8).reshape(16, 16), "PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        palette.add_new(Tag(f"{colour}PaletteColorLookupTableDescriptor"), "US", [256, 0, 16])
        palette.add_new(Tag(f"{colour}PaletteColorLookupTableData"), "OW", np.arange(256, dtype="<u2").tobytes())
    yield file_of(palette)
    tables = _plain(np.arange(16 * 16, dtype=np.uint8).reshape(16, 16))
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 16])
    table.add_new("LUTData", "US", list(range(256)))
    tables.ModalityLUTSequence, tables.VOILUTSequence = [table], [table]
    yield file_of(tables)
    jpeg = _plain(np.zeros((16, 16), np.uint8))
    target = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(target, "JPEG")
    jpeg.PixelData = encapsulate([target.getvalue()])
    jpeg["PixelData"].is_undefined_length = True
    jpeg.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    yield file_of(jpeg)


def _plain(pixels: np.ndarray, photometric: str = "MONOCHROME2") -> Dataset:
    """A Secondary Capture of another maker."""
    dataset = dataset_of("secondary-capture")
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    for keyword in ("PlanarConfiguration", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    del dataset[0x0099, 0x1001]  # without a recipe
    plant(dataset)
    return dataset


def picture_seeds() -> Iterator[bytes]:
    """Pictures of every format, with identifiers in their texts."""
    grey = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", f"{PLANTED} note", zip=True)
    notes.add_itxt("Author", f"{PLANTED} author")
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x0112] = f"{PLANTED} description", f"{PLANTED} artist", 6
    small = Image.fromarray((grey >> 3).astype(np.uint8))
    for picture, format_name, options in (
        (Image.fromarray(grey * 30), "PNG", {"pnginfo": notes}),
        (small.convert("RGBA"), "PNG", {"exif": exif}),
        (small.convert("P"), "GIF", {"comment": PLANTED, "save_all": True, "append_images": [small.convert("P")] * 3}),
        (small.convert("RGB"), "JPEG", {"exif": exif, "comment": PLANTED, "progressive": True}),
        (small, "JPEG", {}),
        (small.convert("CMYK"), "JPEG", {}),
        (small.convert("RGB"), "WEBP", {"exif": exif}),
        (small, "TIFF", {"description": PLANTED, "artist": PLANTED}),
        (small.convert("RGB"), "TIFF", {"compression": "tiff_deflate"}),
        (small.convert("1"), "TIFF", {"compression": "group4"}),
        (small.convert("RGB"), "BMP", {}),
        (small, "JPEG2000", {}),
    ):
        target = io.BytesIO()
        picture.save(target, format_name, **options)
        yield target.getvalue()


def adapter_seeds() -> Iterator[bytes]:
    """Safetensors files of a LoRA, as diffusers and as kohya name its tensors."""
    config = {"unet.r": 2, "unet.lora_alpha": 4, "unet.target_modules": ["to_q", "to_k"]}
    notes = {"format": "pt", "name": "mine", "modality": "chest-xray", "lora_adapter_metadata": json.dumps(config)}
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{}"
    tensors: dict[str, tuple[int, ...]] = {}
    for which in "qk":
        tensors[f"unet.{layer.format(which)}.lora_A.weight"] = (2, 8)
        tensors[f"unet.{layer.format(which)}.lora_B.weight"] = (8, 2)
    yield safetensors_of(tensors, notes)
    yield safetensors_of(tensors, {})
    name = "lora_unet_" + layer.format("q").replace(".", "_")
    yield safetensors_of(
        {f"{name}.lora_down.weight": (2, 8), f"{name}.lora_up.weight": (8, 2), f"{name}.alpha": ()}, {}
    )


def safetensors_of(tensors: dict[str, tuple[int, ...]], notes: dict[str, str]) -> bytes:
    """Write float32 tensors of these shapes."""
    header: dict[str, object] = {"__metadata__": notes} if notes else {}
    body = b""
    for name, shape in tensors.items():
        values = np.full(shape, 0.5, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(values)]}
        body += values
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


def table_seeds() -> Iterator[bytes]:
    """Lists of prompts, and captions."""
    yield b'prompt,seed,steps,count\nchest X-ray,7,20,2\n"axial T1 brain MRI, meningioma",,,1\n'
    yield "\ufeffprompt;negative_prompt;guidance\nBlutausstrich;unscharf;3,5\n".encode()
    yield b"file_name,text,patient_id,split\nimage.png,chest X-ray,p1,train\n"
