"""Times are read and written without a loss."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from hyperfuse.catalogs.times import parse_time, rfc3339

ZONES = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2100, 1, 1), timezones=ZONES))  # noqa: DTZ001 (zones are drawn)
def test_what_is_written_is_read_as_the_same_moment_in_utc(time):
    text = rfc3339(time)
    assert text.endswith("Z")
    assert parse_time(text) == time


def test_the_first_text_that_is_a_time_counts():
    assert parse_time(None, "unknown", "2024:05:01 10:20:30", "2023-01-01") == datetime(
        2024, 5, 1, 10, 20, 30, tzinfo=UTC
    )
    assert parse_time("", "no date") is None
