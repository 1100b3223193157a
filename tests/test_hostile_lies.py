"""Files that call a part what it is not: refused at every door before there are objects or memory for what they say."""

from __future__ import annotations

import pytest

from evaluation.hostile import Case, _Tester
from evaluation.hostile_lies import element, lies
from evaluation.hostile_seeds import dataset_of, file_of
from pipeline.dicom_input import read_image
from pipeline.verification import verify

MOST = 800 * 2**20  # a gigabyte of zeros is refused at 256 MiB, of which there is a copy


def test_lies_cost_neither_memory_nor_time():
    """Each of these took gigabytes, or longer than anybody waits."""
    with _Tester(["image", "verify"], 240) as tester:
        for name, make in lies():
            data = make()
            for door in ("image", "verify"):
                outcome = tester.tried(Case(door, name, data))
                # Texts that are items, and creators that are long, hide nothing that an image needs.
                # Of compressed pixels that cannot be read `verify` says just that.
                may_read = "texts" in name or "creators" in name or (door == "verify" and "JPEG" in name)
                assert (
                    outcome.how in ("refused", "read")[: 1 + may_read] and outcome.memory < MOST and not outcome.leaks
                ), (name, door, outcome)


def test_sound_files_with_odd_parts_are_still_read():
    data = file_of(dataset_of())
    body = 144 + int.from_bytes(data[140:144], "little")
    plain = read_image(data)
    for more in (
        element(8, 5, b"CS", b"ISO 2022 IR 6\\ISO 2022 IR 87"),
        element(9, 0x10, b"LO", b"SOMEONE ") + element(9, 0x1001, b"OB", bytes(3 * 2**20)),
        element(0x42, 0x11, b"OB", bytes(3 * 2**20)),  # an encapsulated document
    ):
        assert read_image(data[:body] + more + data[body:]).sha256 == plain.sha256
    with_document = data[:body] + element(9, 0x10, b"LO", b"SOMEONE ") + data[body:]
    assert verify(with_document).recipe_state == verify(data).recipe_state


@pytest.mark.parametrize("vr", [b"UT", b"UN", b"OB", b"SQ", b"UC"])
def test_a_recipe_of_another_kind_or_length_is_told(vr):
    data = file_of(dataset_of())
    start = data.find(b"\x99\x00\x01\x10UT")
    length = int.from_bytes(data[start + 8 : start + 12], "little")
    value = b"\xfe\xff\x00\xe0\0\0\0\0" * 2**20 if vr == b"SQ" else b"[]\\ " * 2**20
    found = verify(data[:start] + element(0x99, 0x1001, vr, value) + data[start + 12 + length :])
    assert found.recipe_state == "not readable" and not found.ok
