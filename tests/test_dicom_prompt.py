"""Facts found in prompts."""

import pytest

from pipeline.dicom_prompt import PromptFacts, parse_prompt


@pytest.mark.parametrize(
    ("prompt", "sex", "age"),
    [
        ("54 year old woman", "F", 54),
        ("chest X-ray, COVID-19, man", "M", None),
        ("COVID-19, 70 year old man", "M", 70),
        ("covid 19 woman, 44", "F", 44),
        ("54-year-old male", "M", 54),
        ("a 54-year old man with cough", "M", 54),
        ("54yo F", "F", 54),
        ("54 y/o m", "M", 54),
        ("54 y.o. female", "F", 54),
        ("F 54", "F", 54),
        ("M/54", "M", 54),
        ("54M", "M", 54),
        ("54F, chest X-ray", "F", 54),
        ("aged 54", None, 54),
        ("woman aged 54", "F", 54),
        ("age: 54, sex: male", "M", 54),
        ("54 years of age", None, 54),
        ("fifty-four year old man", "M", 54),
        ("two-year-old girl", "F", 2),
        ("adult female 57 years", "F", 57),
        ("woman, 54", "F", 54),
        ("54.5 year old woman", "F", 54.5),
        ("man in his fifties", "M", 55),
        ("woman in her mid-60s", "F", 65),
        ("paediatric patient 1 to 5 years", None, 3),
        ("aged 20-30", None, 25),
        ("pediatric", None, None),
        ("chest X-ray of a child", None, None),
        ("female", "F", None),
        ("men and women", None, None),
        ("no 54 mm nodule", None, None),
        ("woman with 3 cm mass", "F", None),
        ("woman with 3 red blood cells", "F", None),
        ("smoker for 20 years", None, None),
        ("20 pack-years", None, None),
        ("cancer 5 years ago", None, None),
        ("5 years after surgery", None, None),
        ("F 54 mm", None, None),
        ("540 year old", None, None),
        ("kV 120, 64 slices", None, None),
        ("14 red blood cells, 0 platelets", None, None),
        ("T2 MRI", None, None),
        ("", None, None),
    ],
)
def test_sex_and_age(prompt, sex, age):
    facts = parse_prompt(prompt)
    assert facts.sex == sex
    assert facts.age_years == age


def test_months_weeks_and_days_are_years():
    assert parse_prompt("4-month-old boy").age_years == pytest.approx(4 / 12)
    assert parse_prompt("3 weeks old").age_years == pytest.approx(21 / 365.25)
    assert parse_prompt("3 day old newborn").age_years == pytest.approx(3 / 365.25)


def test_range_of_ages():
    assert parse_prompt("54 year old").age_range == (54, 55)
    assert parse_prompt("1 to 5 years").age_range == (1, 6)
    assert parse_prompt("adult").age_range[0] == 16
    assert parse_prompt("child").age_range[0] == 0
    assert parse_prompt("chest X-ray").age_range is None


@pytest.mark.parametrize(
    ("prompt", "view"),
    [
        ("chest X-ray, PA view", "PA"),
        ("anteroposterior", "AP"),
        ("postero-anterior chest radiograph", "PA"),
        ("AP chest", "AP"),
        ("lateral chest x-ray", "LL"),
        ("left lateral view", "LL"),
        ("right lateral view", "RL"),
        ("PA and lateral views", "PA"),
        ("bilateral infiltrates", None),
        ("lateral ventricle", None),
        ("frontal chest X-ray", None),
        ("increased AP diameter", None),
    ],
)
def test_view_position(prompt, view):
    assert parse_prompt(prompt).view_position == view


@pytest.mark.parametrize(
    ("prompt", "contrast"),
    [
        ("with contrast", True),
        ("with intravenous contrast", True),
        ("contrast-enhanced", True),
        ("post-gadolinium", True),
        ("T1 post contrast", True),
        ("gadolinium", True),
        ("T1c", True),
        ("T1+C", True),
        ("enhanced CT", True),
        ("CECT", True),
        ("non-contrast", False),
        ("noncontrast", False),
        ("no contrast", False),
        ("without contrast", False),
        ("without IV contrast", False),
        ("without intravenous contrast", False),
        ("unenhanced", False),
        ("non-enhanced", False),
        ("pre-contrast", False),
        ("before contrast", False),
        ("without gadolinium", False),
        ("w/o contrast", False),
        ("with and without contrast", None),
        ("high contrast", None),
        ("brain MRI", None),
    ],
)
def test_contrast(prompt, contrast):
    assert parse_prompt(prompt).contrast is contrast


@pytest.mark.parametrize(
    ("prompt", "plane", "sequence"),
    [
        ("axial T1 brain MRI", "axial", "T1"),
        ("transverse T2-weighted", "axial", "T2"),
        ("coronal T1w", "coronal", "T1"),
        ("sagittal T2 FLAIR", "sagittal", "FLAIR"),
        ("coronary arteries", None, None),
        ("lung cancer T1N0M0", None, None),
        ("T2, coronal", "coronal", "T2"),
        ("biaxial", None, None),
    ],
)
def test_plane_and_sequence(prompt, plane, sequence):
    facts = parse_prompt(prompt)
    assert (facts.plane, facts.sequence) == (plane, sequence)


@pytest.mark.parametrize(
    ("prompt", "window"),
    [
        ("wide lung window", "wide-lung"),
        ("lung window", "lung"),
        ("soft-tissue window", "soft-tissue"),
        ("mediastinal windowing", "soft-tissue"),
        ("brain window", "brain"),
        ("bone window", "bone"),
        ("lung nodule", None),
    ],
)
def test_window(prompt, window):
    assert parse_prompt(prompt).window == window


@pytest.mark.parametrize(
    ("prompt", "stain"),
    [
        ("May Grunwald-Giemsa stain", "may-grunwald-giemsa"),
        ("May-Grünwald-Giemsa", "may-grunwald-giemsa"),
        ("Giemsa-stained thin blood smear", "giemsa"),
        ("Wright-Giemsa", "wright-giemsa"),
        ("Wright's stain", "wright"),
        ("H&E", "haematoxylin-eosin"),
        ("stained with hematoxylin and eosin", "haematoxylin-eosin"),
        ("h and e stain", "haematoxylin-eosin"),
        ("DAPI-type stained nuclei", "fluorescent"),
        ("Hoechst", "fluorescent"),
        ("blood smear", None),
        ("he is 54 years old", None),
    ],
)
def test_stain(prompt, stain):
    assert parse_prompt(prompt).stain == stain


def test_body_part_and_laterality():
    assert parse_prompt("CXR").body_part == "CHEST"
    assert parse_prompt("brain MRI").body_part == "BRAIN"
    assert parse_prompt("X-ray of the left knee").body_part == "KNEE"
    assert parse_prompt("X-ray of the left knee").laterality == "L"
    assert parse_prompt("bilateral opacities").laterality == "B"


def test_nothing_said_nothing_found():
    assert parse_prompt("a picture") == PromptFacts()


def test_only_strings():
    with pytest.raises(TypeError, match="`prompt`"):
        parse_prompt(None)


@pytest.mark.parametrize(
    "prompt", ["a" * 100_000, "54 " * 20_000, "no " * 20_000 + "contrast", "with a " * 9_000, "🫁\0\n" * 500]
)
def test_long_and_strange_prompts_end(prompt):
    assert isinstance(parse_prompt(prompt), PromptFacts)
