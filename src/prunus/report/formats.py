"""How numbers and names are written, in one place: units, digits, spread. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from prunus.report.spread import Missing, Stat, Value

DASH = "–"
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NAMED = 4
"""Most rows that a remark names one by one."""
_DURATIONS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


class Style(Enum):
    """What kind of number a column holds."""

    PERCENT = "percent"
    FRACTION = "fraction"
    COUNT = "count"
    FOLD = "fold"
    MEGABYTES = "megabytes"
    MILLISECONDS = "milliseconds"
    RATIO = "ratio"
    SECONDS = "seconds"


_SPREAD_IN_TERMINAL = (Style.PERCENT, Style.FRACTION, Style.MILLISECONDS)


@dataclass(frozen=True)
class _Scale:
    """Divide by ``divisor``, write ``digits`` decimals, then ``unit``."""

    divisor: float
    digits: int
    unit: str


def format_value(
    value: Value, style: Style, *, compact: bool = False, of: int | None = None
) -> str:
    """Write a number with its spread and unit, or say that it is missing.

    Args:
        value: The number over seeds, or the reason that there is none.
        style: Kind of number; picks unit and digits from the mean.
        compact: For a terminal: no blanks, no units that the header already holds, and the spread
            of scores and latencies only.
        of: Seeds of the row; where fewer gave a number, the text says so.

    >>> format_value(Stat(0.9123, 0.0012, 3), Style.PERCENT)
    '91.23 ± 0.12 %'
    >>> format_value(Stat(20_400_000, None, 1), Style.COUNT)
    '20.4 M'
    """
    if isinstance(value, Missing):
        return "n/a" if value.reason else DASH
    scale = _scale(value, style, compact)
    text = f"{value.mean / scale.divisor:.{scale.digits}f}"
    # What is equal for all seeds is written as one number: "± 0" would suggest an estimate.
    if value.std and (not compact or style in _SPREAD_IN_TERMINAL):
        sign = "±" if compact else " ± "
        text += f"{sign}{value.std / scale.divisor:.{scale.digits}f}"
    text += scale.unit.lstrip() if compact else scale.unit
    if of is not None and value.n < of:
        text += f"({value.n}/{of})" if compact else f" ({value.n} of {of} seeds)"
    return text


def format_difference(value: float | None, *, digits: int = 1) -> str:
    """Write a relative difference of a certificate, which spans many powers of ten.

    >>> format_difference(3.14e-07)
    '3.1e-7'
    """
    if value is None:
        return DASH
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def printable(text: str) -> str:
    """The text on one line, control characters replaced: records may hold anything."""
    flat = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in flat)


def listed(names: Sequence[str]) -> str:
    """Names, the first of them where they are many: the table shows the others."""
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: NAMED - 1])} and {len(names) - NAMED + 1} more rows"


def _scale(stat: Stat, style: Style, compact: bool) -> _Scale:
    mean = abs(stat.mean)
    match style:
        case Style.PERCENT:
            return _Scale(0.01, 1 if compact else 2, "" if compact else " %")
        case Style.FRACTION:
            return _Scale(1.0, 3 if compact else 4, "")
        case Style.FOLD:
            return _Scale(1.0, 2, "" if compact else "×")
        case Style.RATIO:
            return _Scale(1.0, 2, "")
        case Style.COUNT:
            divisor, prefix = next(((d, p) for d, p in _SI if mean >= d), (1.0, ""))
            digits = _digits(mean / divisor) if divisor > 1 else (0 if mean == int(mean) else 1)
            return _Scale(divisor, digits, f" {prefix}".rstrip())
        case Style.MEGABYTES:
            return _Scale(1e6, _digits(mean / 1e6), "" if compact else " MB")
        case Style.MILLISECONDS:
            digits = min(1, _digits(mean)) if compact and mean >= 1 else _digits(mean)
            return _Scale(1.0, digits, "" if compact else " ms")
        case Style.SECONDS:
            # 120 s reads better than 2 min; long searches are told in hours.
            divisor, unit = next(((d, u) for d, u in _DURATIONS if mean >= 3 * d), (1.0, "s"))
            return _Scale(divisor, min(1, _digits(mean / divisor)), f" {unit}")


def _digits(value: float) -> int:
    """Decimals that give three significant digits, at most three."""
    return 2 if value <= 0 else min(3, max(0, 2 - math.floor(math.log10(value))))
