"""The pages of the documentation, as tests read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
HISTORY = (DOCS / "decisions.md", DOCS / "first-hour.md")
"""What was, or happened: names in them need not exist any more."""
GUIDES = [page for page in PAGES if page not in HISTORY]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def spans(text: str) -> list[str]:
    """Inline code."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def blocks(page: Path) -> list[tuple[str, str]]:
    return FENCE.findall(page.read_text("utf-8"))
