"""The page of a made-up evaluation: what the result says is on it in words and numbers, and nothing that is not there breaks it."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_pages import EVIL, IMAGES, PROMPTS, REWARDS, make_result, text_of

from genrl.comparison import charts, page
from genrl.comparison.page import by_chance, write_page
from genrl.comparison.reading import read, spread
from genrl.evaluation.pictures import CHOICE_SEED, EXTREMES, PAIRS
from genrl.evaluation.plots import fine, number, percent, signed, size

SECTIONS = ["metrics", "ranking", "pictures", "extremes", "categories", "diversity", "distances", "steps", "cost", "reproduce"]
MODELS = ("shapes", "demo <i>", "speed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_result(tmp_path_factory.mktemp("evaluation") / "out", MODELS)


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    path = write_page(folder)
    assert path == folder / "evaluation.html"
    return path.read_text(encoding="utf-8")


def section(html: str, name: str) -> str:
    return html[html.index(f'<section id="{name}">') :].split("</section>")[0]


def row_of(result: dict[str, Any], metric: str, model: str) -> dict[str, Any]:
    (row,) = [row for row in result["comparison"] if (row["metric"], row["model"]) == (metric, model)]
    return row


def test_sections_and_numbers(folder: Path, html: str) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert re.findall(r'<section id="(\w+)">', html) == SECTIONS
    text = text_of(section(html, "metrics"))
    heads = [unescape(head) for head in re.findall(r'<th scope="col">([^<]*)</th>', section(html, "metrics"))[: 1 + len(MODELS)]]
    assert heads == ["Metric", *MODELS], "the base is the first column"
    for row in result["comparison"]:
        low, high = row["ci95"]
        assert f"{number(row['mean'])} [{number(low)}, {number(high)}]" in text
        if row["model"] != MODELS[0]:
            low, high = row["difference_ci95"]
            wins = " to ".join(percent(end) for end in row["win_ci95"])
            told = f"{signed(row['difference'])} [{signed(low)}, {signed(high)}] {row['verdict']} {by_chance(row['p_adjusted'])}"
            told += f" {percent(row['win_rate'])} {wins} {fine(row['minimum_detectable'])} {row['prompts']}"
            assert re.sub(r"\s+", " ", told) in text
    for name, shown in (
        ("distances", "kid/clip .012 .022 .032 to the reference"),
        ("cost", "812 MB"),
        ("reproduce", '"evaluations/<mini>"'),
    ):
        assert shown in text_of(section(html, name))


def test_the_overview_says_it_in_words(folder: Path, html: str) -> None:
    result = json.loads((folder / "result.json").read_text())
    row = row_of(result, "exact", "demo <i>")
    low, high = row["difference_ci95"]
    text = text_of(html)
    assert f"demo <i> is better than shapes by {number(row['difference'])} [{number(low)}, {number(high)}] on exact : more than noise" in (
        text.replace("exact:", "exact :")
    )
    noise = row_of(result, "exact", "speed")
    assert noise["verdict"] == "no more than noise"
    assert f"speed differs by no more than noise from shapes on exact, {signed(noise['difference'])}" in text
    assert f"{fine(noise['minimum_detectable'])} would have been seen" in text
    assert "2 of the 40 prompts were also trained on." in text and EVIL in text


def test_a_loss_is_told_without_signs() -> None:
    assert page.amount({"difference": -0.12, "difference_ci95": [-0.16, -0.08]}) == ".120 [.080,\u00a0.160]"
    assert page.amount({"difference": 0.12, "difference_ci95": [0.08, 0.16]}) == ".120 [.080,\u00a0.160]"


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (0.0002, "under 1 in 1\u202f000"),
        (0.0042, "4 in 1\u202f000"),
        (0.034, "3 in 100"),
        (0.31, "3 in 10"),
        (0.98, "nearly always"),
        (None, "–"),
    ],
)
def test_by_chance(p: float | None, words: str) -> None:
    assert by_chance(p) == words


def test_sizes() -> None:
    assert (size(812_000_000), size(14_230_000_000), size(None)) == ("812 MB", "14.2 GB", "–")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, ".012"), (0.00994, ".0099"), (0.00031, ".00031"), (-0.0042, "−.0042"), (0.00000031, "3.1e-07"), (0.0, ".000"), (None, "–")],
)
def test_small_numbers(value: float | None, text: str) -> None:
    assert fine(value) == text


def test_page_is_self_contained_and_safe(html: str) -> None:
    assert html.count("<script") == 1 and "&lt;script&gt;" in html and "<img" not in html
    assert "demo <i>" not in html and "demo &lt;i&gt;" in html and "<b>aesthetic" not in html
    assert "http://" not in html and "https://" not in html.replace("https://www.w3.org", "")
    assert html.count("<table") == html.count("<caption") and html.count("<h1") == 1
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "two plots share an id"
    assert not re.search(r"#0102\w\w", html), "a stand-in colour of plots.py reached the page"


def test_pictures_of_all_models(folder: Path, html: str) -> None:
    found = read(folder)
    drawn = sorted(np.random.default_rng(CHOICE_SEED).permutation(PROMPTS)[:PAIRS])
    items = re.findall(r'data-item="(\d+)-(\d+)"', section(html, "pictures"))
    assert [int(p) for p, _ in items[:PAIRS]] == drawn and len(items) == 2 * PAIRS
    for figure in section(html, "pictures").split('<figure class="row"')[1:]:
        told = json.loads(unescape(re.findall(r"data-scores='([^']*)'", figure)[0]))
        p, n = map(int, re.findall(r'data-item="(\d+)-(\d+)"', figure)[0])
        assert told == {m: None if np.isnan(v := found.scores[m]["exact"][p, n]) else pytest.approx(v) for m in MODELS}
        assert figure.count("data-model=") == len(MODELS)


def test_best_and_worst_are_the_largest_gains_and_losses_over_the_base(folder: Path, html: str) -> None:
    found = read(folder)
    for reward in REWARDS:
        gains = np.stack([found.scores[model][reward] - found.scores["shapes"][reward] for model in MODELS[1:]])  # [M, P, N]
        name = unescape(reward)
        here = unescape(section(html, "extremes"))
        for title, end in (("Best gains", np.nanmax), ("Worst losses", np.nanmin)):
            grid = here.split(f"<h3>{title} by {name}</h3>")[1].split("<h3>")[0]
            m, p, n = np.argwhere(gains == end(gains))[0]
            rows = grid.split('<figure class="row"')[1:]
            assert f'data-item="{p:05d}-{n}"' in rows[0] and f"{MODELS[1 + m]} {signed(gains[m, p, n])}" in rows[0]
            assert len(rows) == EXTREMES == len(set(re.findall(r'data-item="(\d+)-', grid))), "at most one picture a prompt"


def test_the_front_of_diversity_and_reward(folder: Path) -> None:
    (layout, vendi) = charts.planes(read(folder))
    assert layout["metric"] == "diversity: layout" and "shapes" in layout["front"] and "demo <i>" in layout["front"]
    assert "demo &lt;i&gt;" in layout["svg"] and "vendi" in vendi["svg"]


def test_differences_are_counted_in_the_bases_spread(folder: Path) -> None:
    found = read(folder)
    means = np.nanmean(found.scores["shapes"]["clip"], axis=1)
    assert spread(found, "clip") == pytest.approx(means.std())
    layout = np.array(found.raw["diversity"]["shapes"]["layout"], dtype=float)
    assert spread(found, "diversity: layout") == pytest.approx(np.nanstd(layout))


def test_votes_belong_to_one_result(folder: Path, html: str, tmp_path: Path) -> None:
    assert f'data-key="genrl votes {folder.name} {read(folder).digest}"' in html
    raw = json.loads((folder / "result.json").read_text())
    raw["protocol"]["seed"] = 1
    (tmp_path / "result.json").write_text(json.dumps(raw))
    assert read(tmp_path).digest != read(folder).digest


def test_one_model_alone(tmp_path: Path) -> None:
    html = write_page(make_result(tmp_path / "alone", ("shapes",), (0.0,))).read_text()
    text = text_of(html)
    assert "shapes alone" in text and "Worst losses" not in text and "In full" not in text
    assert 'class="blind"' not in html and not re.search(r"\bnan\b", text, flags=re.IGNORECASE)
    assert section(html, "pictures").count('<figure class="row"') == 2 * PAIRS


def test_two_models_have_no_ranking(tmp_path: Path) -> None:
    html = write_page(make_result(tmp_path / "two", ("shapes", "demo"), (0.0, -0.1), pictures=False)).read_text()
    assert '<section id="ranking">' not in html and "demo is worse than shapes by ." in text_of(html)
    assert "pictures of this evaluation are not here" in text_of(html)


def test_what_a_result_may_lack(folder: Path, tmp_path: Path) -> None:
    raw: dict[str, Any] = json.loads((folder / "result.json").read_text())
    raw["models"][2] |= {"kind": "pictures", "settings": None, "seconds_per_image": None}
    raw["protocol"] |= {"reference": None, "leaked": [], "extractors": []}
    raw["distances"] = {model: {} for model in MODELS}
    raw["curve"], raw["ranking"] = [], {}
    for row in raw["comparison"]:
        if row["model"] == "speed":  # too few prompts to compare
            for name in set(row) - {"metric", "model", "prompts"}:
                del row[name]
    for row in raw["categories"]:
        row["difference_ci95"] = None
    raw["scores"]["speed"] = {reward: [[None] * IMAGES] * PROMPTS for reward in REWARDS}
    (tmp_path / "result.json").write_text(json.dumps(raw))
    text = text_of(write_page(tmp_path).read_text(encoding="utf-8"))
    assert "speed could not be compared with shapes." in text and "Could not be compared." in text
    assert "no distances were measured" in text and "too few prompts" in text and "Steps against quality" not in text
    assert "trained on" not in text and not re.search(r"\bnan\b", text, flags=re.IGNORECASE)


def test_leftovers_of_a_larger_evaluation_are_not_shown(tmp_path: Path) -> None:
    folder = make_result(tmp_path / "out", ("shapes",), (0.0,))
    for name in (f"{PROMPTS:05d}-0.png", f"00000-{IMAGES}.png", "00000-x.png"):
        (folder / "models/shapes" / name).write_bytes((folder / "models/shapes/00000-0.png").read_bytes())
    assert sorted(read(folder).files["shapes"]) == [(p, n) for p in range(PROMPTS) for n in range(IMAGES)]


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no result\.json"):
        write_page(tmp_path)
    (tmp_path / "result.json").write_text('{"genrl_evaluation": 2}')
    with pytest.raises(ValueError, match="schema 2, this version reads 1"):
        write_page(tmp_path)
