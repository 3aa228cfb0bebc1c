"""Run folders with made-up metrics: what a run leaves behind, without running one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

PROMPTS, ROUNDS, EVERY = 24, 30, 10
CONFIG = """run: {{name: made_up, folder: runs, rounds: {rounds}, seed: {seed}}}
model: {{source: shapes}}
rewards: {{train: [{{name: proxy, label: ''}}], judges: [{{name: judge, label: ''}}]}}
actor: {{beta: {beta}, lr: 0.0001}}
"""


def rounds_of(seed: int, rounds: int = ROUNDS, w2: float = 1.0) -> list[dict]:
    """The lines of ``metrics.jsonl``: a slow offset per seed and quick noise on top; ``w2`` scales W2 from round 12 on."""
    rng = np.random.default_rng(seed)
    slow, quick = rng.normal(size=3), rng.normal(size=(rounds + 1, 3))
    return [
        {
            "round": r,
            "images_seen": 128 * r,
            "reward_calls": 128 * r,
            "mix/valid": 1.0,
            "reward/proxy/mean": 0.5 + 0.01 * r + 0.02 * slow[0] + 0.02 * quick[r, 0],
            "reward/proxy/std": 0.2,
            "policy/w2": 0.002 * r * (1 + 0.05 * slow[1] + 0.05 * quick[r, 1]) * (w2 if r >= 12 else 1.0),
            "critic/explained_variance": 0.4 + 0.05 * slow[2] + 0.05 * quick[r, 2],
            "critic/explained_variance/0.4-0.6": 0.4,
            "critic/calibration/0.4-0.6/actual/0": 0.1,
        }
        for r in range(1, rounds + 1)
    ]


def evaluation_record(seed: int, round_: int, rows: range, gain: float = 0.01) -> dict:
    """An evaluation: prompts of fixed difficulty, luck of each picture, a rise of ``gain`` a round."""
    skill = np.random.default_rng(0).uniform(0.2, 0.6, (PROMPTS, 1))[rows]
    luck = np.random.default_rng([seed, round_]).normal(0, 0.05, (2, len(rows), 2))
    return {
        "round": round_,
        "images_seen": 128 * round_,
        "seed": seed,
        "images_per_prompt": 2,
        "prompts": [{"prompt": f"prompt {i}", "category": "even" if i % 2 else "odd"} for i in rows],
        "scores": {
            "proxy": (skill + gain * round_ + luck[0]).tolist(),
            "judge": (skill + gain * round_ + luck[1]).tolist(),
        },
        "shuffled": {},
        "diversity": {"layout": (0.5 - 0.002 * round_ + luck[0, :, 0] / 10).tolist()},
        "statistics": {},
        "images": None,
    }


def make_run(
    run: Path, seed: int = 0, rounds: int = ROUNDS, w2: float = 1.0, gain: float = 0.01, beta: float = 0.15, finished: bool = True
) -> Path:
    """A run folder up to round ``rounds`` of ``ROUNDS``."""
    (run / "evaluations").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(rounds=ROUNDS, seed=seed, beta=beta))
    command = "/somewhere/trainers/ac_flow.py --config configs/ac_flow/made_up.yaml"
    (run / "versions.json").write_text(json.dumps({"command": command, "seed": seed, "commit": "abc", "torch": "2.13", "device": "cpu"}))
    write_lines(run / "metrics.jsonl", rounds_of(seed, rounds, w2))
    write_lines(run / "timing.jsonl", [{"round": r, "seconds": 2.0} for r in range(1, rounds + 1)])
    write_lines(run / "alarms.jsonl", [])
    for round_ in range(0, rounds + 1, EVERY):
        full = round_ in (0, ROUNDS)
        record = evaluation_record(seed, round_, range(0, PROMPTS, 1 if full else 2), gain)
        record["images"] = draw(run, f"round-{round_:05d}", round_) if full else None
        (run / "evaluations" / f"round-{round_:05d}.json").write_text(json.dumps(record))
    if finished:
        (run / "summary.json").write_text(json.dumps({"judge": "judge", "proxy": "proxy", "rounds": rounds}))
    return run


def draw(run: Path, name: str, shade: int) -> str:
    """A few pictures in an evaluation's folder: red on top, blue below, the round in green."""
    folder = run / "evaluations" / name
    folder.mkdir(exist_ok=True)
    for place in range(4):
        picture = Image.new("RGB", (8, 8), (200, shade, 0))
        picture.paste((0, shade, 220), (0, 4, 8, 8))
        picture.save(folder / f"{place:05d}-0.png")
    return f"evaluations/{name}"


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
