"""What the notes of a cell tell. No torch."""

import re
from collections.abc import Sequence


def scored_in(notes: Sequence[str]) -> str | None:
    """Number format and layout in which a search scored its candidates; None without a search.

    >>> scored_in(["random-search: candidates were scored in int8 channels_last"])
    'int8 channels_last'
    """
    forms = "(?:float32|bfloat16|int8|int7) (?:contiguous|channels_last)"
    found = (re.search(rf" in ({forms})$", note) for note in notes)
    return next((match[1] for match in found if match), None)
