"""Reading JSON lines while somebody may still be writing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file of a run, objects with their ``round``; none if there is no file.

    A line that a kill cut short is left out, and so is what follows it.
    """
    lines: list[dict[str, Any]] = []
    for text in path.read_text("utf-8", errors="replace").split("\n") if path.exists() else ():
        try:
            line = json.loads(text) if text.strip() else None
        except json.JSONDecodeError:
            break
        if isinstance(line, dict) and isinstance(line.get("round"), (int, float)):
            lines.append(line)
    return lines
