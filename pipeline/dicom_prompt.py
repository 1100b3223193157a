"""What a prompt says that belongs in a DICOM header: sex, age, view, plane, contrast and the like.

Only what is said counts. A word that is missing or contradictory gives ``None``, so nothing is invented here.
"""

import re
from dataclasses import dataclass

MAXIMUM_AGE = 125.0

_DAYS_PER_YEAR = 365.25
_YEARS_PER_UNIT = {"y": 1.0, "m": 1.0 / 12.0, "w": 7.0 / _DAYS_PER_YEAR, "d": 1.0 / _DAYS_PER_YEAR}

_SMALL_NUMBERS = (  # noqa: SIM905 - a list would take a line a word
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBER_OF_WORD = {word: value for value, word in enumerate(_SMALL_NUMBERS)} | {
    word: 10 * (index + 2) for index, word in enumerate(_TENS)
}

_FEMALE = r"\b(?:female|woman|women|girl|lady)(?:'s)?\b"
_MALE = r"\b(?:male|man|men|boy|gentleman)(?:'s)?\b"
_SEX_WORD = r"(?:female|woman|girl|lady|male|man|boy|gentleman)"
# What may follow a bare number that is a measure and not an age.
_NOT_A_MEASURE = (
    r"(?!\s*-?\s*(?:mm|cm|m\b|µm|um|mg|ml|kg|kv|ma|hu|%|x\b|st|nd|rd|th|slices?|cells?|red|white)|[.,]?\d|[-/]\d)"
)
_UNIT = r"(?:y/?o|y\.o\.?|years?|yrs?|y|months?|mos?|mths?|weeks?|wks?|w|days?|d)"
_OLD = r"(?:[\s-]*(?:old|of\s+age))"

_AGE_RANGE = re.compile(
    rf"(?<![\d.])(\d{{1,3}})\s*(?:-|–|to|and)\s*(\d{{1,3}})[\s-]*(years?|yrs?|y/?o|months?|mos?|weeks?|days?)\b{_OLD}?"
)
_AGE_OLD = re.compile(rf"(?<![\d.])(\d{{1,3}}(?:\.\d+)?)[\s-]*({_UNIT}){_OLD}\b")
_AGE_YO = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d+)?)[\s-]*(y/?o\b|y\.o\b|yrs?\b|y\b)")
_AGE_AGED = re.compile(rf"\b(?:aged?|age\s+of)\b\s*[:=]?\s*(\d{{1,3}}(?:\.\d+)?)(?:\s*({_UNIT})\b)?{_NOT_A_MEASURE}")
_AGE_AGED_RANGE = re.compile(rf"\baged?\b\s*[:=]?\s*(\d{{1,3}})\s*(?:-|–|to|and)\s*(\d{{1,3}})(?:\s*({_UNIT})\b)?")
# "57 years" on its own is an age in "adult female 57 years" but a time in "smoker for 20 years".
_AGE_YEARS = re.compile(
    r"(?<![\d.])(?<!for )(?<!after )(?<!over )(?<!past )(?<!last )(?<!since )(?<!within )(?<!every )"
    r"(\d{1,3}(?:\.\d+)?)\s*(years?)\b"
    r"(?!\s*(?:ago|after|later|post|history|follow|of\s+(?!age)|prior|before|smok|surviv))"
)
_AGE_SEX_LETTER = re.compile(
    r"\b(?P<sex>[FM])[\s/,:-]{0,2}(?P<age>\d{1,3})\b"
    + _NOT_A_MEASURE
    + r"|(?<![\d.])(?P<age2>\d{1,3})[\s/,-]{0,2}(?P<sex2>[FM])\b"
)
_AGE_UNIT_SEX_LETTER = re.compile(rf"\d[\s-]*{_UNIT}(?:[\s-]*old)?[\s,/-]*([fm])\b")
_AGE_SEX_WORD = re.compile(
    rf"\b{_SEX_WORD}\b\s*[,(:/]?\s*(?P<age>\d{{1,3}})\b(?!\s*(?:days?|weeks?|months?)){_NOT_A_MEASURE}"
    rf"|(?<![\d.])(?P<age2>\d{{1,3}})\s*[,/]?\s*{_SEX_WORD}\b"
)
_DECADE = re.compile(r"\bin\s+(?:his|her|their|the)\s+(?:(early|mid|late)[\s-]*)?(\d0)'?s\b")
_DECADE_WORD = re.compile(
    r"\bin\s+(?:his|her|their|the)\s+(?:(early|mid|late)[\s-]*)?"
    r"(twenties|thirties|forties|fifties|sixties|seventies|eighties|nineties)\b"
)

_AGE_GROUPS = (
    (r"\b(?:neonat\w*|newborn)\b", (0.0, 28.0 / _DAYS_PER_YEAR)),
    (r"\binfants?\b", (0.0, 2.0)),
    (r"\btoddler\b", (1.0, 4.0)),
    (r"\b(?:teenage\w*|adolescent)\b", (10.0, 20.0)),
    (r"\b(?:pa?ediatric|child|children|boy|girl)\b", (0.0, 21.0)),
    (r"\b(?:elderly|geriatric)\b", (60.0, MAXIMUM_AGE)),
    (r"\badult\b", (16.0, MAXIMUM_AGE)),
)

_BODY_PARTS = (
    ("BRAIN", r"\b(?:brain|cerebral|cerebell\w*|intracranial|cranial|pituitary|glioma\w*|meningioma\w*)\b"),
    ("HEAD", r"\b(?:head|skull)\b"),
    ("CHEST", r"\b(?:chest|thorax|thoracic|lungs?|pulmonary|pneumonia|mediastin\w*|cxr)\b"),
    ("ABDOMEN", r"\b(?:abdomen|abdominal|liver|kidneys?|kub)\b"),
    ("BREAST", r"\b(?:breast|mammogra\w*)\b"),
    ("PELVIS", r"\b(?:pelvis|pelvic|prostate)\b"),
    ("SPINE", r"\b(?:spine|spinal|lumbar|vertebra\w*)\b"),
    ("NECK", r"\b(?:neck|thyroid)\b"),
    ("HEART", r"\b(?:heart|cardiac)\b"),
    ("HIP", r"\bhips?\b"),
    ("KNEE", r"\bknees?\b"),
    ("ANKLE", r"\bankles?\b"),
    ("FOOT", r"\b(?:foot|feet)\b"),
    ("HAND", r"\bhands?\b"),
    ("WRIST", r"\bwrists?\b"),
    ("ELBOW", r"\belbows?\b"),
    ("SHOULDER", r"\bshoulders?\b"),
)

PAIRED_BODY_PARTS = frozenset(("BREAST", "HIP", "KNEE", "ANKLE", "FOOT", "HAND", "WRIST", "ELBOW", "SHOULDER"))

_WINDOW = r"[\s-]*(?:window\w*|setting|w/l)"
_WINDOWS = (
    ("wide-lung", rf"\bwide(?:[\s-]+lung)?{_WINDOW}"),
    ("lung", rf"\b(?:lung|pulmonary){_WINDOW}"),
    ("soft-tissue", rf"\b(?:soft[\s-]*tissue|mediastin\w+){_WINDOW}"),
    ("brain", rf"\b(?:brain|stroke|parenchymal){_WINDOW}"),
    ("bone", rf"\b(?:bone|bony|osseous){_WINDOW}"),
)

_STAINS = (
    ("may-grunwald-giemsa", r"\b(?:may[\s-]*gr(?:u|ü|ue)nwald(?:[\s-]*giemsa)?|pappenheim|mgg)\b"),
    ("wright-giemsa", r"\bwright(?:'s)?[\s-]*giemsa\b"),
    ("giemsa", r"\bgiemsa\b"),
    ("wright", r"\bwright(?:'s)?\b"),
    ("leishman", r"\bleishman(?:'s)?\b"),
    ("romanowsky", r"\bromanowsky\b"),
    ("haematoxylin-eosin", r"\bh\s?(?:&|\+|and)\s?e\b|\bhe[\s-]+stain\w*|\bha?ematoxylin\b.{1,5}\beosin\b"),
    ("fluorescent", r"\bdapi\b|\bhoechst\b|\bfluorescent(?:ly)?[\s-]+(?:stain|label)\w*"),
)

_AGENT = r"(?:contrast|gadolinium|gad|gd|gadobutrol|iodine)"
_CONTRAST_BOTH = (
    rf"\b(?:with\s+(?:and|or)\s+without|without\s+and\s+with)\b[\w\s-]{{0,20}}\b{_AGENT}\b"
    rf"|\bpre-?\s*and\s*post-?[\s-]*{_AGENT}\b"
)
_CONTRAST_NO = (
    rf"\bnon[\s-]?{_AGENT}|\bunenhanced\b|\bnon[\s-]?enhanced\b|\b(?:no|not?\s+given|without|w/o|minus)\b"
    rf"(?:\s+(?!with\b)[\w-]+){{0,3}}?\s+{_AGENT}\b|\bpre-?[\s-]*{_AGENT}|\bbefore\s+(?:[\w-]+\s+){{0,2}}{_AGENT}\b"
    r"|\b(?:ncct|nect)\b|\bcontrast\s*[:=]\s*no\b|\b(?:no|without)\s+enhancement\b|\bplain\s+(?:head\s+|chest\s+)?ct\b"
)
_CONTRAST_YES = (
    rf"\bwith\s+(?:[\w-]+\s+){{0,2}}{_AGENT}\b|\b(?:{_AGENT}|post)[\s-]+enhanced\b|\bpost-?[\s-]*{_AGENT}\b|\bcect\b"
    rf"|\bafter\s+(?:[\w-]+\s+){{0,2}}{_AGENT}\b|\bgadolinium\b|\bt1\s?-?(?:c|ce|gd|\+\s?c|c\+)(?![\w+])"
    r"|\b(?:iv|intravenous|iodinated)\s+contrast\b|\bcontrast\s*[:=]\s*yes\b|(?<!un)(?<!non-)\benhanced\b"
    r"|\bcontrast\s+(?:agent|medium|media|material|ct|mri|scan|study)\b|\bw/\s*(?:iv\s+)?contrast\b"
    r"|\bt1w?\s+contrast\b|,\s*contrast\s*(?:$|,)"
)


@dataclass(frozen=True)
class PromptFacts:
    """Header facts found in a prompt. Every one is None where the prompt does not say it.

    Attributes
    ----------
    sex : {"M", "F"} or None
        None also where both are named.
    age_years : float or None
        Age in years: "4-month-old" is 1/3. Of a range ("1 to 5 years", "in his fifties") it is the middle.
        A word such as "adult" or "paediatric" is no age.
    age_range : tuple of float or None
        Youngest and oldest age, in years, that the words allow: one year wide for "54 years old", wider for
        "1 to 5 years" or "adult". A given age outside of it contradicts the prompt.
    view_position : {"PA", "AP", "LL", "RL"} or None
        View of a radiograph, as in the DICOM attribute View Position.
    plane : {"axial", "coronal", "sagittal"} or None
        Plane of a slice.
    body_part : str or None
        A defined term of the DICOM attribute Body Part Examined.
    contrast : bool or None
        True with a contrast agent, False where the prompt says there is none.
    sequence : {"T1", "T2", "FLAIR"} or None
        Kind of MR image.
    window : {"lung", "wide-lung", "soft-tissue", "brain", "bone"} or None
        CT display window.
    stain : str or None
        Stain of a slide: "may-grunwald-giemsa", "wright-giemsa", "giemsa", "wright", "leishman", "romanowsky",
        "haematoxylin-eosin", "fluorescent".
    laterality : {"L", "R", "B"} or None
        Side that the prompt speaks of; "B" for both.
    """

    sex: str | None = None
    age_years: float | None = None
    age_range: tuple[float, float] | None = None
    view_position: str | None = None
    plane: str | None = None
    body_part: str | None = None
    contrast: bool | None = None
    sequence: str | None = None
    window: str | None = None
    stain: str | None = None
    laterality: str | None = None


def parse_prompt(prompt: str) -> PromptFacts:
    """Find header facts in the words of a prompt.

    Parameters
    ----------
    prompt : str
        What the user typed.

    Returns
    -------
    PromptFacts
        Only what the prompt says.

    Examples
    --------
    >>> facts = parse_prompt("axial T1 brain MRI with contrast, meningioma, 54 year old woman")
    >>> facts.sex, facts.age_years, facts.plane, facts.sequence, facts.contrast
    ('F', 54.0, 'axial', 'T1', True)
    """
    if not isinstance(prompt, str):
        raise TypeError(f"`prompt` must be a string, not {type(prompt).__name__}")
    prompt = re.sub(r"(?i)\b(covid|sars-cov)[\s-]*(?:19|2)\b", r"\1", prompt)  # no age
    text = _digits_for_words(re.sub(r"[\s_]+", " ", prompt.lower()))
    age_years, age_range = _age(text, prompt)
    return PromptFacts(
        sex=_sex(text, prompt),
        age_years=age_years,
        age_range=age_range,
        view_position=_view_position(text),
        plane=_first(text, _PLANES),
        body_part=_first(text, _BODY_PARTS),
        contrast=_contrast(text),
        sequence=_sequence(text),
        window=next((name for name, pattern in _WINDOWS if re.search(pattern, text)), None),
        stain=next((name for name, pattern in _STAINS if re.search(pattern, text)), None),
        laterality=_laterality(text),
    )


_PLANES = (
    ("axial", r"\b(?:axial|transaxial|transverse)\b"),
    ("coronal", r"\bcoronal\b|\bfrontal plane\b"),
    ("sagittal", r"\b(?:mid)?sagittal\b"),
)


def _first(text: str, patterns: tuple[tuple[str, str], ...]) -> str | None:
    """Give the name whose pattern is met first in the text."""
    found = [(match.start(), name) for name, pattern in patterns if (match := re.search(pattern, text))]
    return min(found)[1] if found else None


def _digits_for_words(text: str) -> str:
    """Write "fifty-four year" as "54 year": only before a unit of age, where it can be meant as one."""
    small, tens = "|".join(_SMALL_NUMBERS), "|".join(_TENS)
    pattern = rf"\b(?:({tens})(?:[\s-]+({small}))?|({small}))(?=[\s-]+(?:years?|yrs?|months?|weeks?|days?)\b)"

    def digits(match: re.Match[str]) -> str:
        return str(sum(_NUMBER_OF_WORD[word] for word in match.groups() if word))

    return re.sub(pattern, digits, text)


def _sex(text: str, prompt: str) -> str | None:
    found = set()
    if re.search(_FEMALE, text):
        found.add("F")
    if re.search(_MALE, text):
        found.add("M")
    found.update(letter.upper() for letter in _AGE_UNIT_SEX_LETTER.findall(text))
    found.update(match["sex"] or match["sex2"] for match in _AGE_SEX_LETTER.finditer(prompt))
    found.update(letter.upper() for letter in re.findall(r"\bsex\s*[:=]\s*([fm])", text))
    return found.pop() if len(found) == 1 else None


def _age(text: str, prompt: str) -> tuple[float | None, tuple[float, float] | None]:
    """Give the age in years and the range of ages that the words allow."""
    for pattern in (_AGE_AGED_RANGE, _AGE_RANGE):
        if match := pattern.search(text):
            scale = _scale(match[3])
            low, high = float(match[1]) * scale, float(match[2]) * scale
            if low <= high <= MAXIMUM_AGE:
                return (low + high) / 2.0, (low, high + scale)
    for pattern in (_AGE_OLD, _AGE_YO, _AGE_AGED, _AGE_YEARS):
        if match := pattern.search(text):
            return _checked(float(match[1]), _scale(match[2]))
    if match := _AGE_SEX_LETTER.search(prompt):
        return _checked(float(match["age"] or match["age2"]), 1.0)
    if match := _AGE_SEX_WORD.search(text):
        return _checked(float(match["age"] or match["age2"]), 1.0)
    if match := _DECADE.search(text):
        return _decade(float(match[2]), match[1])
    if match := _DECADE_WORD.search(text):
        tens = float(_NUMBER_OF_WORD[_TENS[_DECADE_NAMES.index(match[2])]])
        return _decade(tens, match[1])
    for words, limits in _AGE_GROUPS:
        if re.search(words, text):
            return None, limits
    return None, None


_DECADE_NAMES = [word[:-1] + "ies" for word in _TENS]


def _scale(unit: str | None) -> float:
    return _YEARS_PER_UNIT[unit[0]] if unit else 1.0


def _checked(number: float, scale: float) -> tuple[float | None, tuple[float, float] | None]:
    """Turn an age as written into years; an impossible one is no age."""
    years = number * scale
    return (years, (years, years + scale)) if years <= MAXIMUM_AGE else (None, None)


def _decade(start: float, part: str | None) -> tuple[float, tuple[float, float]]:
    low, high = {"early": (0.0, 4.0), "mid": (3.0, 7.0), "late": (6.0, 10.0), None: (0.0, 10.0)}[part]
    return start + (low + high) / 2.0, (start + low, start + high)


def _view_position(text: str) -> str | None:
    measure = r"(?!\s+(?:diameter|dimension|window|pressure|dilat|enlarge))"
    view = r"(?:\s+(?:chest|cxr|thora\w+|view|projection|radiograph\w*|x-?\s?ray|film|position))"
    return _first(
        text,
        (
            ("PA", rf"\bp\.?a\b\.?{measure}|\bpostero-?\s?anterior\b"),
            ("AP", rf"\ba\.?p\b\.?{measure}|\bantero-?\s?posterior\b"),
            ("RL", rf"\bright[\s-]+lateral{view}"),
            ("LL", rf"(?<!right )(?<!right-)\b(?:left[\s-]+)?lateral{view}"),
        ),
    )


def _contrast(text: str) -> bool | None:
    # "high contrast" is about how a picture looks, not about an injection.
    text = re.sub(r"\b(?:high|low|good|poor|strong|image|phase|better|more)[\s-]+contrast\b", " ", text)
    if re.search(_CONTRAST_BOTH, text):
        return None
    if re.search(_CONTRAST_NO, text):
        return False
    return True if re.search(_CONTRAST_YES, text) else None


def _sequence(text: str) -> str | None:
    if re.search(r"\bflair\b|\bfluid[\s-]attenuated\b", text):
        return "FLAIR"
    weighted = r"(?=$|[\s,.;:/)+-]|w\b|wi\b|c\b|ce\b|gd\b|weighted)(?!-?t?\d)(?!\s*n\d)"
    return _first(text, (("T1", rf"\bt1{weighted}"), ("T2", rf"\bt2{weighted}")))


def _laterality(text: str) -> str | None:
    left, right = re.search(r"\bleft\b", text), re.search(r"\bright\b", text)
    if re.search(r"\bbilateral(?:ly)?\b", text) or (left and right):
        return "B"
    return "L" if left else "R" if right else None
