"""Made-up runs and evaluations for the tests of pages: plausible numbers, tiny pictures, and texts that try to be markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genrl.comparison import table
from genrl.evaluation.report import write_report
from genrl.evaluation.statistics import paired_gain, prompt_means
from genrl.types import Prompt

PROMPTS, IMAGES = 40, 2
EVIL = '<script>window.hacked = 1</script> & "friends\'"><img src=x onerror="window.hacked = 2">'
CATEGORIES = ("colour", "<i>count</i>", "relation")
BINS = ("0.2-0.4", "0.4-0.6", "0.8-1.0")
REWARDS = ("exact", "clip", "<b>aesthetic</b>")

Draw = Callable[[int, int, int], Image.Image]  # place of the prompt, image number, how far along or which model


def flat(prompt: int, image: int, step: int) -> Image.Image:
    """A picture of one colour, another for every prompt, image and step."""
    return Image.new("RGB", (8, 8), (prompt * 6, 120 * image, 60 * step))


def make_run(
    run: Path,
    judge: float = 0.2,
    proxy: float = 0.3,
    proxy_name: str = "clip",
    pictures: bool = True,
    film: bool = False,
    draw: Draw = flat,
    texts: list[str] | None = None,
    rounds: tuple[int, ...] = (0, 40, 80),
) -> Path:
    """A run folder whose judge and proxy rise by about ``judge`` and ``proxy`` from first to last; ``film`` keeps pictures of them all."""
    rng = np.random.default_rng(7)
    (run / "evaluations").mkdir(parents=True)
    texts = texts or [f"{EVIL} {i}" if i % 2 else f"{i} blue squares" for i in range(PROMPTS)]
    skill = rng.uniform(0.2, 0.7, (PROMPTS, 1))
    noise = rng.normal(0, 0.05, (PROMPTS, IMAGES))
    scores = {}
    ends = (rounds[0], rounds[-1])
    for step, round_ in enumerate(rounds):
        rows = range(PROMPTS) if round_ in ends else range(1, PROMPTS, 3)
        wobble = rng.normal(0, 0.03, (2, PROMPTS, IMAGES))
        along = step / (len(rounds) - 1)
        values = {"exact": skill + noise + along * judge + wobble[0], proxy_name: skill + noise + along * proxy + wobble[1]}
        raw = {name: table[rows].tolist() for name, table in values.items()}
        raw["exact"][2][0] = None  # one image the judge could not score
        scores[round_] = {name: np.array(table, dtype=float) for name, table in raw.items()}
        diversity = [None if i == 3 else 0.5 - 0.1 * along + 0.001 * i for i in rows]
        record = {
            "round": round_,
            "images_seen": round_ * 64,
            "prompts": [{"prompt": texts[i], "category": CATEGORIES[i % 3]} for i in rows],
            "seed": 11,
            "images_per_prompt": IMAGES,
            "scores": raw,
            "diversity": {"layout": diversity},
            "images": f"evaluations/round-{round_:05d}",
        }
        (run / "evaluations" / f"round-{round_:05d}.json").write_text(json.dumps(record))
        if pictures and (film or round_ in ends):
            folder = run / record["images"]
            folder.mkdir()
            for place, i in enumerate(rows):
                for n in range(IMAGES):
                    draw(i, n, step).save(folder / f"{place:05d}-{n}.png")
    summary = _summary(scores[ends[0]], scores[ends[1]], proxy_name, ends[1])
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text("reward: clip\nnote: <b>bold</b>\n")
    (run / "versions.json").write_text(json.dumps({"genrl": "0.1.0", "torch": "2.13", "command": "python trainers/ac_flow.py", "seed": 3}))
    lines = [_metrics(round_) for round_ in range(0, ends[1] + 1, max(1, ends[1] // 10))]
    del lines[0]["critic/explained_variance"]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return run


def _summary(first: dict[str, np.ndarray], last: dict[str, np.ndarray], proxy_name: str, rounds: int) -> dict[str, Any]:
    before, after = prompt_means(first["exact"]), prompt_means(last["exact"])
    gain, low, high = paired_gain(before, after)
    per_category = {}
    for k, category in enumerate(CATEGORIES):
        g, a, b = paired_gain(before[k::3], after[k::3])
        per_category[category] = {"before": before[k::3].mean(), "after": after[k::3].mean(), "gain": g, "ci95": [a, b], "prompts": 13}
    return {
        "judge": "exact",
        "proxy": proxy_name,
        "judge_before": before.mean(),
        "judge_after": after.mean(),
        "judge_gain": gain,
        "judge_gain_ci95": [low, high],
        "proxy_before": float(first[proxy_name].mean()),
        "proxy_after": float(last[proxy_name].mean()),
        "diversity_before": 0.5,
        "diversity_after": 0.4,
        "diversity_metric": "layout",
        "w2": 0.0123,
        "images_seen": 5120,
        "reward_calls": 5376,
        "wall_s": 7500.0,
        "per_category": per_category,
        "rounds": rounds,
    }


def _metrics(round_: int) -> dict[str, float]:
    line = {
        "round": round_,
        "reward/clip/mean": 0.4 + round_ / 400,
        "policy/w2": round_ / 8000,
        "critic/explained_variance": 0.5,
        "critic/explained_variance/0.0-0.2": 0.8,
    }
    for k, name in enumerate(BINS):  # the noisier, the flatter
        for fifth in range(5):
            predicted = 0.4 + 0.1 * fifth * (1 - 0.2 * k)
            line[f"critic/calibration/{name}/predicted/{fifth}"] = predicted
            line[f"critic/calibration/{name}/actual/{fifth}"] = 0.6 + (0.9 - 0.25 * k) * (predicted - 0.6) + round_ / 8000
    return line


def make_result(
    folder: Path,
    models: tuple[str, ...] = ("shapes", "demo <i>", "speed"),
    gains: tuple[float, ...] = (0.0, 0.12, 0.01),
    draw: Draw = flat,
    texts: list[str] | None = None,
    pictures: bool = True,
) -> Path:
    """The folder of an evaluation of ``models``, base first, that gain about ``gains``: ``result.json`` and the pictures."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    texts = texts or [f"{EVIL} {i}" if i % 2 else f"{i} blue squares" for i in range(PROMPTS)]
    prompts = [{"prompt": text, "category": CATEGORIES[i % 3]} for i, text in enumerate(texts)]
    skill = rng.uniform(0.3, 0.7, (PROMPTS, 1)) + rng.normal(0, 0.05, (PROMPTS, IMAGES))
    scores, diversity, distances = {}, {}, {}
    for m, (label, gain) in enumerate(zip(models, gains, strict=True)):
        tables = {}
        for r, reward in enumerate(REWARDS):
            scale = (1.0, 0.3, 10.0)[r]
            tables[reward] = scale * (skill + (gain, 0.5 * gain, -0.4 * gain)[r] + rng.normal(0, 0.06, (PROMPTS, IMAGES)))
        tables[REWARDS[0]][2, 0] = np.nan  # one picture that could not be scored
        scores[label] = tables
        diversity[label] = {
            "layout": 0.3 - 0.5 * abs(gain) + rng.normal(0, 0.03, PROMPTS),
            "vendi/clip": 1.6 - abs(gain) + rng.normal(0, 0.05, PROMPTS),
        }
        distances[label] = {
            "kid/clip": {"value": 0.012 + 0.01 * m, "note": "to the reference; 0 is the same distribution"},
            "vendi/clip": {"value": 21.3 - 2 * m, "note": "over all pictures"},
        }
        for p in range(PROMPTS if pictures else 0):
            for n in range(IMAGES):
                file = folder / "models" / label.replace("/", "_") / f"{p:05d}-{n}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(p, n, m).save(file)
    for tables in diversity.values():
        tables["layout"][3] = np.nan
    records = [_model(label, m) for m, label in enumerate(models)]
    columns = table.columns(scores, diversity)
    rows = table.comparison(columns, models[0])
    result = {
        "genrl_evaluation": 1,
        "protocol": _protocol(prompts),
        "base": models[0],
        "models": records,
        "scores": scores,
        "diversity": diversity,
        "distances": distances,
        "comparison": rows,
        "categories": table.categories(columns, [Prompt(line["prompt"], line["category"]) for line in prompts], models[0]),
        "ranking": table.rankings(columns, models[0], REWARDS),
        "curve": _curve(models),
    }
    (folder / "result.json").write_text(json.dumps(_plain(result)))
    return folder


def _plain(value: Any) -> Any:
    """Arrays as lists, NaN as None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value.item() if isinstance(value, np.generic) else value


def _protocol(prompts: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "prompt_set": {"name": "mini", "sha256": "ab" * 32, "licence": "CC0-1.0", "source": "genrl"},
        "prompts": prompts,
        "images_per_prompt": IMAGES,
        "seed": 0,
        "rewards": {name: {"name": name, "options": {}, "licence": "Apache-2.0", "weights": []} for name in REWARDS},
        "extractors": ["layout", "clip"],
        "reference": {"source": "pictures/of/<reference>", "sha256": "cd" * 32, "images": 200},
        "leaked": [prompts[1]["prompt"], prompts[4]["prompt"]],
        "versions": {"genrl": "0.1.0", "commit": "0123456", "torch": "2.13", "device": "cpu", "python": "3.11"},
        "command": 'genrl evaluate shapes runs/demo --prompts mini --out "evaluations/<mini>"',
    }


def _model(label: str, place: int) -> dict[str, Any]:
    return {
        "label": label,
        "source": f"runs/{label}",
        "kind": "pipeline" if place == 0 else "run",
        "sha256": f"{place}" * 64,
        "settings": {"steps": 10, "guidance": 4.5, "height": 64, "width": 64},
        "seconds_per_image": 0.021 / (1 + place),
        "peak_bytes": None if place else 812_000_000,
    }


def _curve(models: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for m, source in enumerate(models[:2]):
        for steps in (1, 2, 4, 8):
            mean = 0.7 - (0.3 - 0.2 * m) / steps
            rows.append(
                {
                    "source": source,
                    "steps": steps,
                    "metric": REWARDS[0],
                    "mean": mean,
                    "ci95": [mean - 0.03, mean + 0.03],
                    "seconds_per_image": 0.004 * steps,
                }
            )
    return rows


def page_of(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees: without style, tags and runs of spaces."""
    page = re.sub(r"<(style|script|noscript)>.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))
