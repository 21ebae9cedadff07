"""Moments in time: recognised in the notations of logs and spreadsheets, and nothing else."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.features.infer.drafts import guess_of

START = datetime(2017, 11, 7, 9, 5, 3, 250_000, tzinfo=UTC)
MOMENTS = [START + timedelta(days=17 * n, hours=7 * n, minutes=11 * n) for n in range(40)]

FORMS = {
    "hour of one digit": lambda at: f"{at:%Y-%m-%d} {at.hour}:{at:%M}",
    "month of one digit": lambda at: f"{at.year}-{at.month}-{at.day} {at.hour}:{at:%M:%S}",
    "apache": lambda at: f"{at:%d/%b/%Y:%H:%M:%S} -0700",
    "apache in brackets": lambda at: f"[{at:%d/%b/%Y:%H:%M:%S} +0100]",
    "rfc 1123": lambda at: f"{at:%a, %d %b %Y %H:%M:%S} GMT",
    "asctime": lambda at: f"{at:%a %b %d %H:%M:%S %Y}",
    "twitter": lambda at: f"{at:%a %b %d %H:%M:%S} +0000 {at:%Y}",
    "american": lambda at: f"{at:%m/%d/%Y %I:%M %p}",
    "american, short": lambda at: f"{at.month}/{at.day}/{at:%y} {at.hour}:{at:%M}",
    "points": lambda at: f"{at:%Y.%m.%d}",
    "german": lambda at: f"{at:%d.%m.%Y %H:%M}",
    "name of the month": lambda at: f"{at:%d-%b-%Y}",
    "oracle": lambda at: f"{at:%d-%b-%y}".upper(),
    "words": lambda at: f"{at:%B} {at.day}, {at:%Y}",
    "digits": lambda at: f"{at:%Y%m%d%H%M%S}",
    "digits to the minute": lambda at: f"{at:%Y%m%d%H%M}",
    "day in digits": lambda at: f"{at:%Y%m%d}",
    "basic": lambda at: f"{at:%Y%m%dT%H%M%S}Z",
    "iso": lambda at: at.isoformat(),
    "iso in Z": lambda at: f"{at:%Y-%m-%dT%H:%M:%S}.123456789Z",
    "comma": lambda at: f"{at:%Y-%m-%d %H:%M:%S},250",
    "offset": lambda at: f"{at:%Y-%m-%d %H:%M:%S} +0200",
    "zone": lambda at: f"{at:%Y-%m-%d %H:%M:%S} UTC",
    "week": lambda at: f"{at:%G-W%V-%u}",
}


@pytest.mark.parametrize("is_delimited", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_moments_are_seen_in_each_form(form: str, is_delimited: bool):
    guess = guess_of([FORMS[form](at) for at in MOMENTS], is_delimited=is_delimited)
    assert not guess.is_used
    assert guess.reason.startswith("moment in time")


@pytest.mark.parametrize("scale", [1, 1e3, 1e6])
@pytest.mark.parametrize("kind", ["integer", "fraction", "whole float", "text", "fraction as text", "typed text"])
def test_seconds_since_1970_are_moments(scale: float, kind: str):
    numbers = [at.timestamp() * scale + (0 if scale > 1e3 else 0.25) for at in MOMENTS]
    values = {
        "integer": [int(number) for number in numbers],
        "fraction": numbers,
        "whole float": [float(int(number)) for number in numbers],
        "text": [str(int(number)) for number in numbers],
        "fraction as text": [f"{number:.2f}" for number in numbers],
        "typed text": [str(int(number)) for number in numbers],
    }[kind]
    guess = guess_of(values, "event_time", is_delimited=kind != "typed text")
    assert guess.reason.startswith("moment in time")


COMES_BACK = {
    "month": [f"2017-{n % 12 + 1:02d}" for n in range(60)],
    "clock": [f"{n % 24:02d}:30" for n in range(60)],
    "weekday": ["Mon", "Tue", "Wed", "Sun"] * 15,
    "price": [f"{n % 17}.{n % 89 + 10}" for n in range(60)],
    "dotted price": [f"{n % 17 + 1}.{n % 9}50" for n in range(60)],
    "version": ["1.2.3", "1.10.0", "2.0.11"] * 20,
    "address": ["10.0.0.1", "192.168.100.200", "172.16.254.1"] * 20,
    "addresses of three digits": ["192.168.100.200", "192.168.100.201"] * 30,
    "phone": ["555-123-4567", "(555) 123 4567", "+1 555 123 4567"] * 20,
    "grouped phone": ["555 123 456", "555 987 654"] * 30,
    "number": [str(10_000_000 + 7919 * n) for n in range(60)],
    "long number": [str(10_000_000_000_000 + 7919 * 10**7 * n) for n in range(60)],
    "share": ["1/2", "3/4", "11/12"] * 20,
    "part number": ["12-34-5678", "98-76-5432"] * 30,
}


@pytest.mark.parametrize("name", COMES_BACK)
def test_what_comes_back_is_no_moment(name: str):
    for called in (name, "x"):
        assert "moment" not in guess_of(COMES_BACK[name], called).reason
    if "price" not in name and "number" not in name:
        assert guess_of(COMES_BACK[name], name)[::2] == ("categorical", True)
