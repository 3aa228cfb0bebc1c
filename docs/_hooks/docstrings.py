"""What the API reference does to docstrings: their tables of plain text are Markdown's code blocks, their double backticks single ones."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

RULE = re.compile(r"^ *=+( +=+)+ *$")


class PlainTables(Extension):
    """Fences tables that rules of ``=`` enclose, which Markdown would take for headings."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text with each table in a code block of its own."""
    lines, found, inside = text.splitlines(), [], False
    rules = [number for number, line in enumerate(lines) if RULE.match(line)]
    # a table has three rules: above and below its head, and at its end
    opening, closing = set(rules[::3]), set(rules[2::3])
    for number, line in enumerate(lines):
        if number in opening and len(rules) % 3 == 0:
            found += ["", "```text"]
            inside = True
        found.append(line)
        if number in closing and inside:
            found += ["```", ""]
            inside = False
    return "\n".join(found)
