"""The patient and the study that a user may give, checked against DICOM's rules, and ages as DICOM writes them."""

import datetime
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from . import dicom_prompt, dicom_provenance

_DAYS_PER_YEAR = 365.25
_AGE_STRING = re.compile(r"(\d{3})([DWMY])", re.ASCII)
_YEARS_PER_UNIT = {"Y": 1.0, "M": 1.0 / 12.0, "W": 7.0 / _DAYS_PER_YEAR, "D": 1.0 / _DAYS_PER_YEAR}
_TIME = re.compile(r"(?:[01]\d|2[0-3])[0-5]\d[0-5]\d(?:\.\d{1,6})?", re.ASCII)


@dataclass(frozen=True)
class Patient:
    """A patient to write into the header; what is not given is made up or left empty.

    Attributes
    ----------
    name : str, optional
        DICOM Person Name, such as "Doe^Jane". The word SYNTHETIC is put before the family name.
    id : str, optional
        At most 64 characters.
    sex : {"M", "F", "O"}, optional
        Must not contradict the prompt.
    age : float or str, optional
        Years, or a DICOM age such as "054Y" or "004M". Must not contradict the prompt.
    birth_date : str or datetime.date, optional
        YYYYMMDD.
    """

    name: str | None = None
    id: str | None = None
    sex: str | None = None
    age: float | str | None = None
    birth_date: str | datetime.date | None = None

    def __post_init__(self) -> None:
        """Check every value and bring it to the form that the header has."""
        _set(self, "name", _person_name(self.name, "patient.name"))
        _set(self, "id", _text(self.id, "patient.id", 64))
        if self.sex is not None and (not isinstance(self.sex, str) or self.sex.strip().upper() not in ("M", "F", "O")):
            raise ValueError(f"`patient.sex` is {self.sex!r}; allowed are 'M', 'F' and 'O'")
        _set(self, "sex", self.sex.strip().upper() if self.sex is not None else None)
        _set(self, "age", _age(self.age))
        _set(self, "birth_date", _date(self.birth_date, "patient.birth_date"))


@dataclass(frozen=True)
class Study:
    """A study to write into the header; what is not given is made up or left empty.

    Attributes
    ----------
    description, series_description : str, optional
        At most 52 characters: "SYNTHETIC - " is put before them.
    accession_number, id : str, optional
        At most 16 characters.
    date : str or datetime.date, optional
        YYYYMMDD.
    time : str or datetime.time, optional
        HHMMSS, also HHMMSS.ffffff.
    referring_physician_name : str, optional
        DICOM Person Name.
    """

    description: str | None = None
    series_description: str | None = None
    accession_number: str | None = None
    id: str | None = None
    date: str | datetime.date | None = None
    time: str | datetime.time | None = None
    referring_physician_name: str | None = None

    def __post_init__(self) -> None:
        """Check every value and bring it to the form that the header has."""
        for name in ("description", "series_description"):
            _set(self, name, _text(getattr(self, name), f"study.{name}", 64, dicom_provenance.marked))
        for name in ("accession_number", "id"):
            _set(self, name, _text(getattr(self, name), f"study.{name}", 16))
        _set(self, "date", _date(self.date, "study.date"))
        _set(self, "time", _time(self.time, "study.time"))
        physician = _person_name(self.referring_physician_name, "study.referring_physician_name", mark=False)
        _set(self, "referring_physician_name", physician)


def made(cls: type[Any], value: Any, name: str) -> Any:
    """A Patient or Study from itself, a like dataclass of another copy of this code, a dictionary or None."""
    if value is None or isinstance(value, cls):
        return value
    if is_dataclass(value) and type(value).__name__ == cls.__name__:
        value = asdict(value)  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a {cls.__name__} or a dictionary, not {type(value).__name__}")
    try:
        return cls(**value)
    except TypeError as error:
        raise ValueError(
            f"`{name}` has an unknown field; allowed are {', '.join(f.name for f in fields(cls))}"
        ) from error


def given_values(patient: Patient, study: Study) -> dict[str, object]:
    """Give the values that a user has set, without the empty ones."""
    values = {f"patient.{name}": value for name, value in asdict(patient).items()}
    values |= {f"study.{name}": value for name, value in asdict(study).items()}
    return {name: value for name, value in values.items() if value is not None}


def names_someone(patient: Patient, study: Study) -> bool:
    """Tell whether the values name one patient or one study, and not only a kind of patient."""
    return any((patient.name, patient.id, study.id, study.accession_number))


def sex_of(patient: Patient, facts: dicom_prompt.PromptFacts) -> str | None:
    """Give the sex for the header.

    Raises
    ------
    ValueError
        If the given one contradicts the prompt.
    """
    if patient.sex is not None and facts.sex is not None and patient.sex != facts.sex:
        raise ValueError(f"`patient.sex` is {patient.sex!r}, but the prompt says {facts.sex!r}")
    return patient.sex or facts.sex


def age_of(patient: Patient, facts: dicom_prompt.PromptFacts) -> str | None:
    """Give the age for the header, as a DICOM age string.

    Raises
    ------
    ValueError
        If the given one contradicts the prompt.
    """
    if patient.age is None:
        return None if facts.age_years is None else age_string(facts.age_years)
    years = years_of(str(patient.age))
    if facts.age_range is not None:
        low, high = facts.age_range
        # An age string is rounded down, by up to one of its own units.
        if not low - _YEARS_PER_UNIT[str(patient.age)[3]] < years <= high:
            raise ValueError(f"`patient.age` is {patient.age!r}, but the prompt says {_between(low, high)}")
    return str(patient.age)


def age_string(years: float) -> str:
    """Write an age in years as DICOM does: "054Y"; in months below two years, "004M"; in days below four weeks.

    Examples
    --------
    >>> age_string(54.9), age_string(1.5), age_string(1 / 3), age_string(3 / 365.25)
    ('054Y', '018M', '004M', '003D')
    """
    days = years * _DAYS_PER_YEAR
    if years >= 2.0 or years == 1.0:
        return f"{int(years + 1e-6):03d}Y"
    if days < 27.5:
        return f"{round(days):03d}D"
    months = years * 12.0
    if abs(months - round(months)) > 0.05 and days < 92.0:
        return f"{int(days / 7.0 + 1e-6):03d}W"
    return f"{max(1, int(months + 0.05)):03d}M"


def years_of(age: str) -> float:
    """Give the years of a DICOM age string."""
    return int(age[:3]) * _YEARS_PER_UNIT[age[3]]


def full_years_between(birth_date: datetime.date, date: datetime.date) -> int:
    """Give the age in full years on a date."""
    return date.year - birth_date.year - ((date.month, date.day) < (birth_date.month, birth_date.day))


def parsed_date(text: str) -> datetime.date:
    """Read YYYYMMDD."""
    return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))


def written_date(date: datetime.date) -> str:
    """Write YYYYMMDD; `strftime` leaves out the zeros of early years."""
    return f"{date.year:04d}{date.month:02d}{date.day:02d}"


def _set(owner: object, name: str, value: object) -> None:
    object.__setattr__(owner, name, value)  # the way of a frozen dataclass to tidy its own fields


def _between(low: float, high: float) -> str:
    first, last = age_string(low), age_string(high)
    return first if high - low <= 1.0 else f"{first} to {last}"


def _text(value: object, name: str, length: int, mark: Callable[[str], str] | None = None) -> str | None:
    """Check a value of one line: length, no backslash (it parts values) and no control characters."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a string, not {value!r}")
    text = value.strip()
    if not text:
        return None
    _check_characters(text, name)
    whole = mark(text) if mark else text
    if len(whole) > length:
        allowed = length - (len(whole) - len(text))
        why = f" (the mark {dicom_provenance.MARK} takes the rest of {length})" if allowed < length else ""
        raise ValueError(f"`{name}` has {len(text)} characters; at most {allowed} are allowed{why}")
    return text


def _check_characters(text: str, name: str) -> None:
    for character in text:
        if character == "\\" or not character.isprintable():
            raise ValueError(f"`{name}` holds {character!r}; backslashes and control characters are not allowed")


def _person_name(value: object, name: str, mark: bool = True) -> str | None:
    """Check a Person Name: up to 3 groups (=) of up to 5 components (^), 64 characters a group."""
    text = _text(value, name, 3 * 64 + 2)
    if text is None:
        return None
    groups = text.split("=")
    if len(groups) > 3 or any(group.count("^") > 4 for group in groups):
        raise ValueError(f"`{name}` is {text!r}; a name has at most 5 components (^) and 3 groups (=)")
    whole = dicom_provenance.marked_name(text) if mark else text
    for given, group in zip(groups, whole.split("="), strict=True):
        if len(group) > 64:
            allowed = 64 - (len(group) - len(given))
            why = f" (the mark {dicom_provenance.MARK} takes the rest of 64)" if allowed < 64 else ""
            raise ValueError(f"`{name}` has {len(given)} characters; at most {allowed} are allowed{why}")
    return text


def _age(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip().upper()
        if not text:
            return None
        if _AGE_STRING.fullmatch(text) and years_of(text) <= dicom_prompt.MAXIMUM_AGE:
            return text
    elif not isinstance(value, bool) and hasattr(value, "__float__"):
        years = float(value)
        if math.isfinite(years) and 0.0 <= years <= dicom_prompt.MAXIMUM_AGE:
            return age_string(years)
    raise ValueError(
        f"`patient.age` is {value!r}; allowed are 0 to {dicom_prompt.MAXIMUM_AGE:.0f} (years) and '054Y' or '004M'"
    )


def _date(value: object, name: str) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, datetime.date):
        return written_date(value)
    if isinstance(value, str) and re.fullmatch(r"\d{8}", value.strip(), re.ASCII):
        try:
            parsed_date(value.strip())
        except ValueError:
            pass
        else:
            return value.strip()
    raise ValueError(f"`{name}` is {value!r}; allowed is a real date as YYYYMMDD")


def _time(value: object, name: str) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, datetime.time):
        return value.strftime("%H%M%S.%f" if value.microsecond else "%H%M%S")
    if isinstance(value, str) and _TIME.fullmatch(value.strip()):
        return value.strip()
    raise ValueError(f"`{name}` is {value!r}; allowed is a time of day as HHMMSS")
