"""The recipe, its UIDs and the synthetic marking."""

import datetime
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes

from pipeline.dicom_provenance import (
    PRIVATE_CREATOR,
    PRIVATE_GROUP,
    Recipe,
    date_and_time_of,
    mark_synthetic,
    marked,
    marked_name,
    read_recipe,
    uid_of,
)
from tests.dicom_samples import recipe_of
from tests.volume_samples import volume_recipe


def full_recipe() -> Recipe:
    return recipe_of(
        "brain-mri",
        'axial T1 brain MRI, ménìngïoma 🧠 \\ "quoted"\nsecond line',
        adapters=(("brain-mri", "cd" * 32, 0.75), ("style", "ef" * 32, 1)),
        strength=0.6,
        input_sha256="12" * 32,
    )


def test_json_is_canonical_and_round_trips():
    recipe = full_recipe()
    text = recipe.to_json()
    assert text.isascii()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert Recipe.from_json(text) == recipe
    assert Recipe.from_json(text).digest() == recipe.digest()


def test_digest_leaves_out_versions_and_request_digest_the_seed():
    recipe = full_recipe()
    assert replace(recipe, versions=(("torch", "3.0"),)).digest() == recipe.digest()
    assert replace(recipe, seed=8).digest() != recipe.digest()
    assert replace(recipe, seed=8).request_digest() == recipe.request_digest()
    for name, value in asdict(recipe).items():
        if name in ("seed", "versions", "copy_check"):
            continue
        other = {"adapters": (), "strength": None, "input_sha256": None, "volume": volume_recipe().volume}.get(
            name, value + 1 if isinstance(value, int | float) else "x"
        )
        assert replace(recipe, **{name: other}).request_digest() != recipe.request_digest(), name


def test_equal_values_of_other_types_give_equal_digests():
    one = recipe_of("ct-head", guidance_scale=4, seed=np.int64(7), adapters=[["a", "b", 1]])
    two = recipe_of("ct-head", guidance_scale=np.float64(4.0), seed=7, adapters=(("a", "b", 1.0),))
    assert one == two
    assert one.digest() == two.digest()
    assert hash(one) == hash(two)


def test_digest_is_the_same_in_another_process():
    code = (
        "from tests.dicom_samples import recipe_of\n"
        "from pipeline.dicom_provenance import uid_of\n"
        "recipe = recipe_of('ct-head'); print(recipe.digest(), uid_of(recipe.digest()))"
    )
    here = recipe_of("ct-head")
    environment = {"PYTHONPATH": ":".join(path or "." for path in sys.path), "PYTHONHASHSEED": "5"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.split() == [here.digest(), uid_of(here.digest())]


def test_digest_stays_what_it_was():
    # A change here changes the UIDs of every image ever made: raise the recipe's format number instead.
    assert recipe_of("ct-head").digest() == "99c60d93dec7cbb58f80f4d41a51e7ec23c436e2dca88e4084d0d81586a2f494"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": None}, "guidance_scale"),
        ({"strength": float("inf")}, "strength"),
        ({"prompt": 5}, "prompt"),
        ({"adapters": (("a", "b"),)}, "adapters"),
        ({"adapters": 5}, "adapters"),
        ({"versions": ("torch",)}, "versions"),
        ({"input_sha256": 5}, "input_sha256"),
    ],
)
def test_wrong_values_are_named(changes, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        recipe_of("ct-head", **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("seed"), "lacks fields: seed"),
        (lambda values: values.update(extra=1), "unknown fields: extra"),
        (lambda values: values.update(seed="x"), "`seed`"),
        (lambda values: values.update(format=99), "format 99"),
        (lambda values: values.pop("format"), "format None"),
    ],
)
def test_wrong_json_is_refused(change, message):
    values = json.loads(recipe_of("ct-head").to_json())
    change(values)
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "[" * 100_000, "null", "{", "\0"])
def test_no_json_is_refused(text):
    with pytest.raises(ValueError, match="recipe"):
        Recipe.from_json(text)


def test_recipe_is_frozen():
    with pytest.raises(FrozenInstanceError):
        recipe_of("ct-head").seed = 3


def test_uids_are_valid_short_and_distinct():
    uids = {uid_of("instance", number) for number in range(500)}
    assert len(uids) == 500
    assert all(uid.is_valid and uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)
    assert uid_of("a", "bc") != uid_of("ab", "c")


def test_made_up_dates_are_old_and_depend_on_nothing_but_the_key():
    dates = [date_and_time_of(number) for number in range(200)]
    assert dates == [date_and_time_of(number) for number in range(200)]
    assert all(datetime.date(2000, 1, 1) <= date <= datetime.date(2010, 1, 1) for date, _ in dates)
    assert len(set(dates)) > 190


def test_marks():
    assert marked_name("Doe^Jane") == "SYNTHETIC Doe^Jane"
    assert marked_name("^Jane") == "SYNTHETIC^Jane"
    assert marked_name("=山田^太郎") == "SYNTHETIC=山田^太郎"
    assert marked_name("Synthetic^One") == "Synthetic^One"
    assert marked_name("") == "SYNTHETIC"
    assert marked("Head") == "SYNTHETIC - Head"
    assert marked("synthetic head") == "synthetic head"
    assert "NOT FOR DIAGNOSTIC USE" in marked("")


def test_mark_synthetic():
    dataset = Dataset()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName = "Doe^Jane"
    recipe = full_recipe()
    mark_synthetic(dataset, recipe)
    assert dataset.SyntheticData == "YES"
    assert list(dataset.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    purpose = dataset.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0]
    code = codes.cid7005.SynthesizingEquipment
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning) == (
        code.value,
        code.scheme_designator,
        code.meaning,
    )
    for keyword in ("PatientName", "StudyDescription", "SeriesDescription", "ImageComments", "DerivationDescription"):
        assert "SYNTHETIC" in str(dataset[keyword].value)
    assert read_recipe(dataset) == recipe
    before = dataset.to_json()
    mark_synthetic(dataset, recipe)
    assert dataset.to_json() == before


def test_adapters_are_told_as_far_as_there_is_room():
    def description(*adapters):
        dataset = Dataset()
        mark_synthetic(dataset, recipe_of("brain-mri", adapters=adapters))
        return dataset.ContributingEquipmentSequence[0].ContributionDescription

    assert "dapter" not in description()
    assert f"Adapter brain-mri, weight 0.75, SHA-256 {'cd' * 32}." in description(("brain-mri", "cd" * 32, 0.75))
    many = description(*((f"{number}" * 60, "cd" * 32, 1.0) for number in range(8)))
    assert len(many) <= 1024 and many.endswith("3 more adapters in the recipe.")


def test_read_recipe_of_other_datasets():
    assert read_recipe(Dataset()) is None
    dataset = Dataset()
    dataset.private_block(PRIVATE_GROUP, "SOMEBODY ELSE", create=True).add_new(1, "LO", "x")
    assert read_recipe(dataset) is None
    recipe = full_recipe()
    dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True).add_new(
        1, "UN", recipe.to_json().encode() + b" "
    )
    assert read_recipe(dataset) == recipe
    dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[1].value = b"{broken"
    with pytest.raises(ValueError, match="recipe"):
        read_recipe(dataset)
