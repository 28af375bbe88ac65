"""Records of the study, as files."""

import json
from pathlib import Path
from typing import Any


def write(file: Path, content: Any) -> None:
    """JSON that is there as a whole or not at all: a queue that is killed goes on by what is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)
