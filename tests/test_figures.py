"""Measured numbers in README and docs come from result files: in tables between markers, or in prose that is checked here."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# docs/decisions.md is a log: what was tried, by which command, and what was seen on that day
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "decisions.md")]

# definitions, ranges and other people's constants, which no command of ours measures: page -> the numbers its prose may hold
GIVEN = {
    "README.md": {"3.11", "95 %", "3.5"},
    "docs/rewards.md": {"95 %", ".125", ".5", ".03", "4.5", "-1", "0.15", "0.35", "0.2", "0.4", "-2.3", "-.7", "22.5"},
    "docs/methods/ac_flow.md": {".5", ".9"},
    "docs/methods/dmd2.md": {".02", ".98"},
    "docs/methods/flash_dmd.md": {".9", ".75", ".5", ".02", ".98", ".858", ".602", ".009"},
    "docs/evaluate.md": {"95 %"},
    "docs/models.md": {"3.5"},
    "docs/scale.md": {"3.5"},
    "docs/start.md": {"3.11", "3.5"},
    "docs/zh/start.md": {"3.11", "3.5"},
}
LICENCES = r"(?:Apache|CC0|CC-BY)-\d\.\d"
IGNORED = (
    r"<!-- (?:results|help|config|curve|abstract|modules|source): .*?<!-- end -->",
    r"```.*?```",
    r"`[^`\n]*`",
    r"\]\([^)]*\)",
    r"\d{4}\.\d{5}",
    LICENCES,
)
NUMBER = r"-?(?<![\w.])\d*\.\d+(?![\w.]*\d)|\d+(?:\.\d+)? ?%"


def prose(text: str) -> str:
    """A page without what is generated, code, addresses, and numbers of papers and licences."""
    for pattern in IGNORED:
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return text


def loaded(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text())


def remote(what: str) -> str:
    (row,) = (row for row in loaded("remote_reward")["rows"] if row["what"] == what)
    return f"{row['ratio']:.0%}".replace("%", " %")


def alarm(name: str) -> str:
    return str(int(loaded("overoptimisation_shapes")["claims"]["alarm"]["numbers"][name]))


# a sentence with its figure -> the figure by the result file
QUOTED = {
    "docs/rewards.md": [
        (r"that reaches (\d+ %) of the speed", lambda: remote("loop, 24 passes")),
        (r"three times\s+as long, (\d+ %);", lambda: remote("loop, 96 passes")),
        (r"nothing to hide behind, (\d+ %)", lambda: remote("alone")),
        (r"of (\d+) runs of\s+`benchmarks/overoptimisation_shapes.py`", lambda: str(len(loaded("overoptimisation_shapes")["rows"]))),
        (r"(\w+) lost \.05 of the exact judge", lambda: {"4": "four"}.get(alarm("hacked"), alarm("hacked"))),
    ],
}


@pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_prose_holds_no_number_that_nothing_measures(page):
    name = page.relative_to(ROOT).as_posix()
    text = page.read_text("utf-8")
    for pattern, _ in QUOTED.get(name, []):
        text, found = re.subn(pattern, " ", text)
        assert found == 1, f"{name} no longer says {pattern!r}: leave it out of QUOTED"
    left = set(re.findall(NUMBER, prose(text))) - GIVEN.get(name, set())
    assert not left, f"{name} has {sorted(left)} in its prose: put what is measured between markers, or check it here"


@pytest.mark.parametrize(("page", "pattern", "figure"), [(page, *quote) for page, quotes in QUOTED.items() for quote in quotes])
def test_quoted_figures_are_those_of_the_results(page, pattern, figure):
    found = re.search(pattern, (ROOT / page).read_text("utf-8"))
    assert found and found[1] == figure()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("it is 1.84 times as fast", {"1.84"}),
        ("it keeps 93 % of it", {"93 %"}),
        ("about .05 more", {".05"}),
        ("<!-- results: a --> 1.84 <!-- end --> arXiv 2510.18072, `0.3`, Apache-2.0", set()),
        ("three of 21 runs, version 3", set()),
    ],
)
def test_a_number_in_prose_is_found(text, left):
    assert set(re.findall(NUMBER, prose(text))) == left
