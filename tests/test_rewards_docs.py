"""docs/rewards.md says what the code says: the table of built-in rewards, the rules, its own examples."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import torch

from genrl.cli import main
from genrl.config import Mix
from genrl.doctor import examine
from genrl.mix import RULES
from genrl.reward import BUILT_IN, About, Kind, _find, about, check_scores, load_reward

DOCS = Path(__file__).parents[1] / "docs" / "rewards.md"
TEXT = DOCS.read_text("utf-8")
BEGIN, END = "<!-- rewards -->", "<!-- end -->"


def table() -> str:
    """The built-in rewards as Markdown, from what each says of itself."""
    lines = ["| name | what it scores | range | scale | licence of the weights | packages |", "|---|---|---|---|---|---|"]
    modules = [where.split(":")[0] for where in BUILT_IN.values()]
    for name, where in sorted(BUILT_IN.items()):
        _, found = _find(name)
        said = about(found) if hasattr(found, "about") else About()
        own, shared = sentence(inspect.getdoc(found)), modules.count(where.split(":")[0]) > 1
        whole = sentence(sys.modules[where.split(":")[0]].__doc__)
        words = [whole] if " above" in own else [own] if shared else [whole, own]
        kind = "" if said.kind == "pointwise" else f" ({said.kind})"
        scale = f"{said.scale:g}" if said.scale != 1 else ""
        licence = said.license if said.weights or said.license != About().license else ""
        cells = [f"`{name}`", ". ".join(words).replace("?.", "?") + kind, bounds(said), scale, licence, ", ".join(said.packages)]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") or "–" for cell in cells) + " |")
    return "\n".join(lines)


def sentence(text: str | None) -> str:
    """The first sentence of a docstring, as Markdown."""
    first = " ".join((text or "").split("\n\n")[0].split()).replace("``", "`")
    return re.split(r"[.;] (?=[A-Z]|NaN|with )", first + " ")[0].strip().rstrip(".")


def bounds(said: About) -> str:
    return "" if said.bounds is None else "{:g} to {:g}".format(*said.bounds)


def blocks(kind: str) -> dict[str, str]:
    """Fenced blocks that a comment names: what it names -> what the block holds."""
    return dict(re.findall(rf"<!-- {kind}: (\S+) -->\n```\w*\n(.*?)```", TEXT, re.DOTALL))


def rows(title: str) -> list[str]:
    """The first cells, code as it is, of the table that has this first column's title."""
    found = re.search(rf"^\| {re.escape(title)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert found, title
    return re.findall(r"^\| ([^|]+) \|", found[1], re.MULTILINE)


def test_the_table_of_built_in_rewards_is_what_they_say():
    shown = TEXT.split(BEGIN)[1].split(END)[0].strip()
    assert shown == table(), f"write this between the markers of docs/rewards.md:\n{table()}"


def test_every_rule_field_and_kind_is_explained():
    assert {row.strip("`") for row in rows("rule")} == RULES.keys()
    named = {name for row in rows("field") for name in re.findall(r"`(\w+)`", row)}
    assert named == {field.name for field in fields(About)}
    assert [row.strip("`") for row in rows("kind")] == list(get_args(Kind))
    defaults = dict(re.findall(r"^\| `(\w+)` \| .* \| `(\w+)` \| [^|]+ \| [^|]+ \|$", TEXT, re.MULTILINE))
    assert defaults == {name: rule.normalise for name, rule in RULES.items()}
    for name in re.findall(r"`rewards\.mix\.(\w+)`", TEXT):
        assert name in {field.name for field in fields(Mix)}


@pytest.mark.parametrize(("name", "expected"), [("brightness.py:bright", 0.25), ("exposure.py:Exposure", -0.25)])
def test_the_examples_run(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, source in blocks("file").items():
        Path(file).write_text(source)
    assert check_scores(name, load_reward(name)(torch.full((2, 3, 4, 4), 0.25), ["", ""], [{}, {}]), 2).tolist() == [expected] * 2


def test_the_doctor_says_what_the_text_quotes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file, source in blocks("file").items():
        Path(file).write_text(source)
    for name, quoted in blocks("doctor").items():
        with pytest.raises(SystemExit):
            main(["rewards", "doctor", name, "--size", "64"])
        said, wanted = capsys.readouterr().out.splitlines(), quoted.splitlines()[1:]
        assert [line[:24] for line in said] == [line[:24] for line in wanted]  # numbers behind these differ between machines
        assert {line for line in said if line.startswith("fail")} == {line for line in wanted if line.startswith("fail")} != set()
    assert {finding.status for finding in examine("exposure.py:Exposure", size=64)} == {"ok", "skip"}


def test_links_lead_somewhere():
    anchors = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (DOCS.parent / target).exists(), target
