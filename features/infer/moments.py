"""Moments in time in all notations; recurring times (a month, an hour of the day) are not moments."""

import re
from datetime import datetime

EPOCHS = ((10**8, 2**32), (10**11, 2**42), (10**14, 2**52), (10**17, 2**62))  # s, ms, us, ns since 1970
FIRST_YEAR, LAST_YEAR = 1900, 2200

# Form by number of digits. Short ones count only under the name of a time, or if many values have the form.
DIGIT_DATES = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
SURE_DIGITS = 12

_MONTH = r"(?P<name>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY_NAME = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_ZONE = r"(?:\s?(?:z|utc|gmt|[ecmp][sd]t|cest|cet|[+-]\d{2}(?::?\d{2})?))*(?:\s\([a-z ]+\))?"
_CLOCK = rf"\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:[.,:]\d+)?)?(?:\s?[ap]\.?m\.?)?{_ZONE}"
_SHORT_CLOCK = rf"\d{{4}}(?:\d{{2}}(?:[.,]\d+)?)?{_ZONE}"
_DATES = (
    r"(?P<year>\d{4})(?P<sep>[-/])(?P<one>\d{1,2})(?P=sep)(?P<two>\d{1,2})",
    r"(?P<year>\d{4})\.(?P<one>\d{2})\.(?P<two>\d{2})\.?",
    r"(?P<one>\d{1,2})(?P<sep>[-/.])(?P<two>\d{1,2})(?P=sep)(?P<year>\d{4})",
    r"(?P<one>\d{1,2})/(?P<two>\d{1,2})/(?P<year>\d{2})",
    rf"(?P<one>\d{{1,2}})(?:st|[nr]d|th)?(?P<sep>[-/ ]){_MONTH},?(?P=sep)(?P<year>\d{{4}}|\d{{2}})",
    rf"{_MONTH}\s+(?P<one>\d{{1,2}})(?:st|[nr]d|th)?,?\s+(?P<year>\d{{4}})",
    r"(?P<year>\d{4})-?w(?P<week>\d{2})(?:-?[1-7])?",
)
_FORMS = [
    *(rf"{_DAY_NAME}{date}(?:(?:t|:|,?\s+(?:at\s+)?){_CLOCK}|t{_SHORT_CLOCK})?" for date in _DATES),
    rf"(?P<year>\d{{4}})(?P<one>\d{{2}})(?P<two>\d{{2}})(?:t{_SHORT_CLOCK}|[t ]{_CLOCK})",
    rf"{_DAY_NAME}{_MONTH}\s+(?P<one>\d{{1,2}})\s+{_CLOCK}\s+(?P<year>\d{{4}})",  # C's asctime
]
_PATTERNS = [re.compile(rf"\[?{form}\]?", re.IGNORECASE) for form in _FORMS]


def is_written_moment(text: str) -> bool:
    """True for a date, or a date and a clock time, in one of the notations of logs and spreadsheets.

    >>> [is_written_moment(text) for text in ("2017-11-07 9:30", "10/Oct/2000:13:55:36 -0700", "2017-11", "1.2.3")]
    [True, True, False, False]
    """
    matches = (pattern.fullmatch(text.strip()) for pattern in _PATTERNS)
    return any(_is_date(match.groupdict()) for match in matches if match is not None)


def _is_date(parts: dict[str, str | None]) -> bool:
    year = parts["year"] or ""
    if len(year) == 4 and not FIRST_YEAR <= int(year) <= LAST_YEAR:
        return False
    if week := parts.get("week"):
        return 1 <= int(week) <= 53
    numbers = sorted(int(parts[key] or 1) for key in ("one", "two") if key in parts)
    return 1 <= numbers[0] <= 12 and numbers[-1] <= 31 if parts.get("name") is None else 1 <= numbers[0] <= 31


def digits_of_moment(text: str) -> int:
    """Number of digits of a moment written as digits only: 8 for 20171107; 0 for any other text."""
    form = DIGIT_DATES.get(len(text))
    return len(text) if form and text.isdecimal() and _parses(text, form) else 0


def is_short_hour(text: str) -> bool:
    """True for an hour in the notation of Avazu's log: 14102100 is midnight on 21 October 2014."""
    return len(text) == 8 and text.isdecimal() and _parses("20" + text, "%Y%m%d%H")


def is_epoch(low: float, high: float) -> bool:
    """True if the whole range may be seconds since 1970, or milli-, micro- or nanoseconds."""
    return any(first <= low and high < last for first, last in EPOCHS)


def _parses(text: str, form: str) -> bool:
    try:
        return FIRST_YEAR <= datetime.strptime(text, form).year <= LAST_YEAR
    except ValueError:
        return False
