"""The report of a made-up run: every section is there, every number is that of the data, and nothing comes from outside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from made_up_pages import EVIL, PROMPTS, flat, make_run, page_of, text_of

from genrl.evaluation import figures, pictures
from genrl.evaluation.pictures import CHOICE_SEED, EXTREMES, FRAMES, PAIRS, STRIPS
from genrl.evaluation.plots import count, duration, number, signed
from genrl.evaluation.reading import full_ends, on_common, read_evaluations
from genrl.evaluation.report import write_report

SECTIONS = ["pictures", "extremes", "film", "curves", "critic", "scores", "diversity", "hacking", "reproduce"]


def test_headline_and_sections(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = page_of(run)
    text = text_of(page)
    summary = json.loads((run / "summary.json").read_text())
    assert re.findall(r'<section id="(\w+)">', page) == SECTIONS
    assert f"rose from {number(summary['judge_before'])} to {number(summary['judge_after'])}" in text
    low, high = summary["judge_gain_ci95"]
    gain = f"{signed(summary['judge_gain'])} [{signed(low)}, {signed(high)}]"
    assert f"{gain}, over 40 held-out prompts: more than noise" in text
    for shown in ("80 %", "5 120", "2 h 5 min", ".012", ".500 → .400"):
        assert shown in text
    for row in summary["per_category"].values():
        assert f"{number(row['before'])} {number(row['after'])} {signed(row['gain'])}" in text
    for fact in ("python trainers/ac_flow.py", "reward: clip", "2.13", "evaluation seed 11"):
        assert fact in text


def test_page_is_self_contained_and_safe(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", film=True))
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy and "img-src data:" in policy
    assert "&lt;script&gt;" in page and "<img" not in page
    assert "<b>bold</b>" not in page and "<i>count" not in page and "&lt;i&gt;count" in page
    assert "http://" not in page and "https://" not in page and "url(//" not in page
    sources = re.findall(r'<image [^>]*href="([^"]{0,30})', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert all(href.startswith("#") for href in re.findall(r'<(?:a|use) href="([^"]*)"', page))
    assert len(page) < 4e6


def test_a_picture_is_embedded_once(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", film=True))
    embedded = re.findall(r'<image id="(\w+)"', page)
    shown = re.findall(r'<use href="#(p\w+)"', page)
    assert len(embedded) == len(set(embedded)) and set(shown) == set(embedded)
    assert len(shown) > len(embedded), "grids by several rewards repeat pictures"


def test_page_is_accessible(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert page.count("<h1") == 1 and '<html lang="en">' in page and "width=device-width" in page
    assert all(re.search(r'aria-label="[^"]+"|aria-hidden="true"', tag) for tag in re.findall(r"<svg[^>]*>", page))
    assert page.count("<table") == page.count("<caption")
    assert "prefers-color-scheme: dark" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "two plots share an id"
    assert not re.search(r"#0102\w\w", page), "a stand-in colour of plots.py reached the page"


def scores_in(grid: str) -> list[str]:
    return re.findall(r'class="score \w+">([^<]*)</span>', grid)


def test_pictures_show_random_best_and_worst_by_any_reward(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", judge=0.0, proxy=0.0)
    page = page_of(run)
    first, last = read_evaluations(run)[0], read_evaluations(run)[-1]
    pictures, extremes = (page[page.index(f'<section id="{name}">') :].split("</section>")[0] for name in ("pictures", "extremes"))
    for reward in ("exact", "clip"):
        gain = last.scores[reward] - first.scores[reward]
        best, worst = (extremes.split(f"<h3>{kind} by {reward}</h3>")[1].split("<h3>")[0] for kind in ("Best gains", "Worst losses"))
        for grid, find in ((best, np.nanmax), (worst, np.nanmin)):
            p, n = np.argwhere(gain == find(gain))[0]
            assert scores_in(grid)[0] == f"{number(first.scores[reward][p, n])} → {number(last.scores[reward][p, n])}"
            assert len(scores_in(grid)) == EXTREMES
    shown = [unescape(prompt) for prompt in re.findall(r"</span>([^<]*)</figcaption>", pictures)]
    order = np.random.default_rng(CHOICE_SEED).permutation(PROMPTS)
    drawn = sorted(order[:PAIRS]) + sorted(order[PAIRS : 2 * PAIRS])
    assert shown == [first.keys[p][0] for p in drawn]
    assert pictures.index("<details>") > pictures.index(f'data-item="{drawn[PAIRS - 1]:05d}-0"'), "the second dozen is folded"


def test_votes_of_other_pictures_are_not_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (key,) = re.findall(r'data-key="([^"]*)"', page_of(run))
    assert key.startswith("genrl votes run ") and f'data-key="{key}"' in page_of(run)
    file = run / "evaluations/round-00080.json"
    raw = json.loads(file.read_text())
    raw["scores"]["clip"][0][0] += 0.001
    file.write_text(json.dumps(raw))
    assert f'data-key="{key}"' not in page_of(run)


def test_the_filmstrip_needs_three_evaluations_with_pictures(tmp_path: Path) -> None:
    assert "Fewer than three evaluations kept pictures" in text_of(page_of(make_run(tmp_path / "few")))
    run = make_run(tmp_path / "run", film=True)
    page = page_of(run)
    film = page[page.index('<section id="film">') :].split("</section>")[0]
    assert film.count('<figure class="strip">') == STRIPS and film.count("<li>") == 3 * STRIPS
    # the small evaluation names its pictures by its own places: prompt 1 is its prompt 0
    evaluations = on_common(read_evaluations(run))
    prompts = [prompt for prompt, _ in evaluations[0].keys]
    for strip in film.split('<figure class="strip">')[1:]:
        place = prompts.index(unescape(strip.split("<figcaption>")[1].split("</figcaption>")[0]))
        told = re.findall(r"round (\d+) <b>([^<]*)</b>", strip)
        assert told == [(str(e.round), number(e.scores["exact"][place, 0])) for e in evaluations]
    strips = pictures.filmstrip(read_evaluations(run), "exact", album := pictures.Album())
    assert strips is not None
    file = run / f"evaluations/round-00040/{evaluations[1].rows[prompts.index(strips['strips'][0]['prompt'])]:05d}-0.png"
    assert dict((p.id, data) for p, data in album.entries)[strips["strips"][0]["frames"][1]["picture"].id] == pictures.thumbnail(file)[0]


def test_many_evaluations_are_thinned_with_both_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", film=True, rounds=tuple(range(0, 31)))
    film = pictures.filmstrip(read_evaluations(run), "exact", pictures.Album())
    assert film is not None and (film["shown"], film["kept"]) == (FRAMES, 31)
    rounds = [frame["round"] for frame in film["strips"][0]["frames"]]
    assert (rounds[0], rounds[-1], len(set(rounds))) == (0, 30, FRAMES)


def test_calibration_is_of_the_last_round_that_has_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bare = {key: value for key, value in lines[-1].items() if "calibration" not in key}
    found = figures.calibration([*lines, bare | {"round": 81}])
    assert found is not None and found["round"] == 80
    assert found["off"]["σ 0.2-0.4"] == pytest.approx(np.mean([abs(0.01 + (p - 0.6) * -0.1) for p in (0.4, 0.5, 0.6, 0.7, 0.8)]))
    assert found["worst"] == "σ 0.8-1.0" and "farthest from the diagonal is σ 0.8-1.0" in found["svg"]
    assert "forecasts in round 80" in text_of(page_of(run))
    assert figures.calibration([bare]) is None
    (run / "metrics.jsonl").write_text(json.dumps(bare) + "\n")
    assert "recorded no calibration" in text_of(page_of(run))


def test_pareto() -> None:
    nan = float("nan")
    assert figures.pareto([1, 2, 3, 2, 2], [3, 2, 1, 1, 2]) == [True, True, True, False, True]  # equal points do not beat each other
    assert figures.pareto([1, nan, 0], [1, 9, 0]) == [True, False, False]
    assert figures.pareto([1, 2], [1, 2]) == [False, True]


def test_the_front_is_named(tmp_path: Path) -> None:
    assert "Every evaluation is on the front" in text_of(page_of(make_run(tmp_path / "run", pictures=False)))
    fell = text_of(page_of(make_run(tmp_path / "fell", judge=-0.2, pictures=False)))  # less of both
    assert "On the front: round 0." in fell


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", draw=lambda p, n, step: flat(p, n, step).resize((300, 300))))
    assert "data:image/jpeg;base64," in page and "data:image/png" not in page


@pytest.mark.parametrize(
    ("judge", "proxy", "proxy_name", "words"),
    [
        (0.2, 0.2, "clip", "Not hacked: the judge exact rose"),
        (0.2, 0.6, "clip", "Partly hacked"),
        (0.0, 0.3, "clip", "Hacked: the trained reward clip rose"),
        (-0.2, 0.3, "clip", "while the judge exact fell"),
        (0.2, 0.2, "exact", "trained on its judge, exact, itself"),
    ],
)
def test_verdict_reaches_the_page(tmp_path: Path, judge: float, proxy: float, proxy_name: str, words: str) -> None:
    text = text_of(page_of(make_run(tmp_path / "run", judge, proxy, proxy_name)))
    assert text.count(words) == 2, "once in the headline, once on the hacking page"
    assert ("not distinguishable from noise" in text) == (judge == 0)


@pytest.mark.parametrize(
    ("trained", "views", "lead", "words"),
    [
        ([], False, "Trained for 80 rounds without a reward, and judged by exact, which training did not see", "asked no reward"),
        ([], True, "Distilled for 80 rounds without a reward", "asked no reward"),
        (["exact"], True, "Distilled for 80 rounds, with reinforcement learning on exact, which is also the judge", "no proxy to hack."),
        (["elsewhere"], False, "on the reward elsewhere, and judged by exact", "elsewhere was not scored"),
    ],
)
def test_a_report_calls_trained_what_was_trained(tmp_path: Path, trained: list, views: bool, lead: str, words: str) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    summary = json.loads((run / "summary.json").read_text()) | {"trained": trained}
    (run / "summary.json").write_text(json.dumps(summary))
    if views:
        (run / "evaluations" / "teacher.json").write_text((run / "evaluations" / "round-00080.json").read_text())
    text = text_of(page_of(run)).replace(" ,", ",").replace(" .", ".")
    assert lead in text and text.count(words) == 2
    assert "clip (second opinion)" in text and "clip, second opinion" in text and "trained reward clip" not in text
    assert ("exact (judge and trained reward)" in text) == (trained == ["exact"])


def test_curves_use_the_prompts_all_evaluations_share(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    found = on_common(read_evaluations(run))
    assert [e.round for e in found] == [0, 40, 80]
    assert len({e.keys for e in found}) == 1 and len(found[0].keys) == 13
    assert "means over the 13 prompts" in text_of(page_of(run))
    # the subset starts at prompt 1: rows are matched by text, not by position
    full = json.loads((run / "evaluations/round-00000.json").read_text())
    assert found[0].scores["clip"][0].tolist() == full["scores"]["clip"][1]


def test_tables_compare_full_evaluations(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    small = json.loads((run / "evaluations/round-00040.json").read_text())
    (run / "evaluations/round-00099.json").write_text(json.dumps(small | {"round": 99}))
    found = read_evaluations(run)
    assert [e.round for e in full_ends(found)] == [0, 80]
    assert [e.round for e in full_ends(found[1:2] + found[:1] + found[3:])] == [40, 99]  # only one is full: the ends, as they are
    assert "over 40 held-out prompts" in text_of(page_of(run))


def test_repeated_prompts_stay_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    for file in (run / "evaluations").glob("*.json"):
        raw = json.loads(file.read_text())
        raw["prompts"] = [{"prompt": "a circle"} for _ in raw["prompts"]]
        file.write_text(json.dumps(raw))
    first, last = on_common([read_evaluations(run)[0], read_evaluations(run)[-1]])
    assert len(first.keys) == len(last.keys) == PROMPTS


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5614, ".561"),
        (-0.0004, ".000"),
        (-0.25, "−.250"),
        (1.0, "1.00"),
        (0.9999, "1.000"),
        (21.34, "21.3"),
        (1234.0, "1234"),
        (None, "–"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_words() -> None:
    assert (signed(0.1), signed(-0.1), signed(0.0), signed(float("nan"))) == ("+.100", "−.100", "+.000", "–")
    assert (count(5120), duration(12.4), duration(200), duration(7500)) == ("5\u202f120", "12 s", "3 min 20 s", "2 h 5 min")


def test_what_a_run_is_compared_with(tmp_path):
    run = make_run(tmp_path / "run")
    assert "Beside the teacher" not in write_report(run).read_text()
    last = json.loads((run / "evaluations" / "round-00080.json").read_text())
    shifted = {name: [[v if v is None else v - 0.1 for v in row] for row in rows] for name, rows in last["scores"].items()}
    (run / "evaluations" / "teacher.json").write_text(json.dumps({**last, "scores": shifted}))
    for steps in (2, 4):
        for who in ("student", "teacher"):
            few = {name: [row[:1] for row in rows] for name, rows in last["scores"].items()}
            record = {**last, "scores": few, "images_per_prompt": 1, "diversity": {}, "images": None}
            (run / "evaluations" / f"{who}-{steps}.json").write_text(json.dumps(record))
    text = write_report(run).read_text()
    section = text[text.index('id="views"') : text.index('id="pictures"')]
    assert "Beside the teacher" in section and "+.100" in section and section.count('<figure class="pair"') == PAIRS
    names = re.findall(r'<th scope="row">([^<]+)</th>', section)
    assert names == ["this run", "teacher", "student-2", "student-4", "teacher-2", "teacher-4"]
    assert "<svg" in section and EVIL not in section
