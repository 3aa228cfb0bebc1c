"""The documentation site: it builds, its links lead somewhere, its tables come from results and code, both languages say the same."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pages import DOCS, FENCE, PAGES, ROOT, blocks, named, prose, spans

LINKED = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def module(path: str) -> Any:
    """A module by its file."""
    name = f"docs_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def hooks() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield module("docs/_hooks/hooks.py")


@pytest.fixture(scope="module")
def recipes() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield module("benchmarks/recipes.py")


# -- the site


def nav(entries: object) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, list):
        for entry in entries:
            yield from nav(next(iter(entry.values())) if isinstance(entry, dict) else entry)


def test_every_entry_of_the_navigation_exists_and_none_twice():
    entries = list(nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert len(entries) == len(set(entries)) > 20
    assert [entry for entry in entries if not (DOCS / entry).is_file()] == []


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning_and_asks_nobody_else(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-2000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text("utf-8")
        fetched = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?://[^"]+)"', text)
        assert [url for url in fetched if 'rel="canonical"' not in url] == [], page.name
        assert not re.search(r"<!-- (?:results|curve|config|abstract|modules|help|source): ", text), f"{page.name}: a place is empty"
    assert '<svg class="concepts"' in (tmp_path / "concepts.html").read_text("utf-8")
    assert (tmp_path / "search" / "search_index.js").is_file(), "search works from a folder"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_places_are_filled_from_results_and_code(page, hooks):
    text = page.read_text("utf-8")
    filled = hooks.expand(text)
    assert not hooks.PLACE.search(filled)
    for kind, name, fallback in hooks.PLACE.findall(text):
        assert fallback.strip(), f"{kind} {name} has no words for those who read the Markdown itself"
        # the tables of docs/results.md are written there, too
        assert fallback not in filled or page.name == "results.md", f"{kind} {name}"
    assert "Not measured." not in filled


def test_links_out_of_the_site_become_paths(hooks):
    assert hooks.local("[README.md](../README.md) and [it](../genrl/path.py)", "x.md") == "`README.md` and it (`genrl/path.py`)"
    assert hooks.local("[a](../../tests/x.py)", "zh/x.md") == "a (`tests/x.py`)"
    kept = "[a](b.md#c), [d](#e), [f](https://example.org), ![g](../h.png)"
    assert hooks.local(kept, "x.md") == kept


def test_tables_of_plain_text_are_fenced():
    pytest.importorskip("griffe", reason="mkdocstrings is not installed: pip install -e '.[docs]'")
    docstrings = module("docs/_hooks/docstrings.py")
    table = "====  ====\na     b\n====  ====\n1     2\n====  ===="
    assert docstrings.fenced(f"Before:\n\n{table}\n\nafter") == f"Before:\n\n\n```text\n{table}\n```\n\n\nafter"
    assert docstrings.fenced("no = table\n") == "no = table"


def test_every_public_module_is_in_the_reference(hooks):
    import genrl

    pages = [hooks.expand(page.read_text("utf-8")) for page in (DOCS / "api").glob("*.md")]
    shown = {name for text in pages for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    apart = ("genrl.trainers", "genrl.rewards", "genrl.configs", "genrl.cli", "genrl.worlds", "genrl.prompts")
    public = {
        found.name
        for found in pkgutil.walk_packages(genrl.__path__, "genrl.")
        if not found.name.startswith(apart) and "._" not in found.name
    }
    empty = {name for name in public if not (importlib.import_module(name).__doc__ or "").strip()}
    assert public - shown - empty == set()
    assert {name for name in shown if importlib.util.find_spec(name) is None} == set()


# -- links


def anchors(path: Path) -> set[str]:
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE):
        if own := re.search(r"\{ #([\w-]+) \}$", heading):
            found.add(own[1])
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"\{ #[\w-]+ \}$", "", heading)).strip()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


@pytest.mark.parametrize("page", LINKED, ids=named)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{named(page)} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{named(page)} links to {target}, and there is no such heading"


# -- what the pages say


def test_the_reward_of_the_first_page_is_what_it_says(tmp_path, monkeypatch):
    from genrl.doctor import examine
    from genrl.reward import load_reward

    monkeypatch.chdir(tmp_path)
    source = dict(re.findall(r"<!-- file: (\S+) -->\n```\w*\n(.*?)```", (DOCS / "start.md").read_text("utf-8"), re.DOTALL))["dark.py"]
    Path("dark.py").write_text(source)
    scores = load_reward("dark.py:dark")(torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).expand(2, 3, 4, 4), ["", ""], [{}, {}])
    assert scores.tolist() == pytest.approx([-0.2, -0.7])
    failed = [finding.check for finding in examine("dark.py:dark", size=64) if finding.status == "fail"]
    assert failed == ["shuffled prompts"]


def entries(page: Path) -> dict[str, list[str]]:
    """Anchor of each heading -> what inline code in its part names, in order."""
    parts = re.split(r"^#{2,3} .*\{ #([\w-]+) \}$", FENCE.sub("", page.read_text("utf-8")), flags=re.MULTILINE)
    return {anchor: sorted(spans(text)) for anchor, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_troubleshooting_says_the_same_in_both_languages():
    english, chinese = (entries(DOCS / path) for path in ("troubleshooting.md", "zh/troubleshooting.md"))
    assert list(english) == list(chinese)
    for anchor, cited in english.items():
        assert set(cited) == set(chinese[anchor]), anchor


def test_troubleshooting_has_forty_entries_that_each_name_what_shows_it():
    for path, look, do in (("troubleshooting.md", "**Look at** ", "**Do** "), ("zh/troubleshooting.md", "**看** ", "**做** ")):
        parts = re.split(r"^### .*$", (DOCS / path).read_text("utf-8"), flags=re.MULTILINE)[1:]
        assert len(parts) == 40
        for part in parts:
            shown = part.split(look)[1].split(do)[0]
            assert spans(shown) or re.search(r"\]\(", shown), part


def test_the_first_pages_have_the_same_code_and_steps():
    english, chinese = DOCS / "start.md", DOCS / "zh" / "start.md"
    assert [block for _, block in blocks(english)] == [block for _, block in blocks(chinese)]
    count = lambda page: len(re.findall(r"^## ", page.read_text("utf-8"), re.MULTILINE))  # noqa: E731
    assert count(english) == count(chinese)


@pytest.mark.parametrize("name", ["start.md", "troubleshooting.md"])
def test_both_languages_link_to_each_other_at_the_top(name):
    for page, other in ((DOCS / name, f"zh/{name}"), (DOCS / "zh" / name, f"../{name}")):
        assert f"]({other})" in "\n".join(page.read_text("utf-8").splitlines()[:4])


# -- the recipes


def test_a_recipes_lower_bound_is_its_operations_over_the_rates(recipes):
    stages = [
        {"stage": "sampling", "plain_flop": 6.0, "learning_flop": 0.0},
        {"stage": "decoding", "plain_flop": 100.0, "learning_flop": 0.0},
        {"stage": "actor", "plain_flop": 2.0, "learning_flop": 9.0},
    ]
    assert recipes.at_least({"stages": stages}, {"sampling": 4.0, "learning": 3.0}) == pytest.approx(8 / 4 + 9 / 3)


def test_recipes_keep_the_samples_of_a_step_and_the_page_gives_their_commands(recipes):
    rows = json.loads((recipes.RESULTS / "recipes.json").read_text())["rows"]
    assert [row["recipe"] for row in rows] == list(recipes.RECIPES)
    lora = [
        row for row in rows if row["config"].endswith("medium_lora.yaml") and row["gpus"] in (1, 8, 64) and row["capacity_bytes"] > 3e10
    ]
    assert len(lora) == 3 and len({row["samples_a_step"] for row in lora}) == 1
    page = " ".join((DOCS / "scale.md").read_text("utf-8").replace("\\\n", " ").split())
    for name, recipe in recipes.RECIPES.items():
        for change in recipe.changes:
            assert change.replace("=", " ").replace("[old, ref]", "'[old, ref]'") in page, f"{name}: {change}"


def test_a_recipe_is_planned_from_configs_alone(recipes, monkeypatch, tmp_path):
    small = {"num_layers": 1, "dual_attention_layers": (0,)}
    monkeypatch.setitem(recipes.SD3_NETWORKS, "sd3.5_medium", recipes.SD3_NETWORKS["sd3.5_medium"] | small)
    monkeypatch.setitem(recipes.T5_XXL, "num_layers", 1)
    monkeypatch.setitem(recipes.CLIP_G, "num_hidden_layers", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = recipes.measure("small", recipes.RECIPES["LoRA, as shipped"], recipes.outline_of(tmp_path))
    assert row["gpus"] == 8 and row["fits"] and row["peak_bytes"] > row["resident_bytes"] > 0
    assert row["seconds_a_round"] is None and "no such device" in row["untimed"]
