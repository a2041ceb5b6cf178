"""Moments as a person writes them: `02:30`, `+2h`, `2027-01-31 02:30`, all in local time. Pure."""

import datetime
import re

from studio.errors import QueueError

UNITS = {"m": 60, "h": 3600, "d": 86_400}


def parse_moment(text: str, *, now: float) -> float:
    """Return seconds since 1970 in UTC; a time of day that is over today means tomorrow.

    Raises:
        QueueError: It is no moment.
    """
    words = text.strip()
    if match := re.fullmatch(r"\+(\d{1,6})([mhd])", words):
        return now + int(match[1]) * UNITS[match[2]]
    today = datetime.datetime.fromtimestamp(now)
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", words):
            hour, minute = map(int, words.split(":"))
            moment = today.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return (moment + datetime.timedelta(days=moment <= today)).timestamp()
        return datetime.datetime.fromisoformat(words).timestamp()
    except (ValueError, OverflowError, OSError):
        raise QueueError(f'"{text}" is no moment. Write 02:30, +2h, or 2027-01-31 02:30.') from None
