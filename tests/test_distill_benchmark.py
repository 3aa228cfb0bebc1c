"""The table of distillation, on run folders that are made up: nothing is trained here."""

import importlib
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genrl import config
from genrl.trainers import dmd2, flash_dmd

ROOT = Path(__file__).parents[1]
PROMPTS, SMALL, IMAGES = 6, (0, 3, 5), 2


@pytest.fixture(scope="module")
def distill():
    """The benchmark; what it asks for again and again, a run's settings and a picture's features, it gets from memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        module = importlib.import_module("distill_shapes")
        load, features = cache(config.load), cache(module.features)
        patch.setattr(config, "load", lambda schema, arguments: load(schema, tuple(arguments)))
        patch.setattr(module, "features", lambda paths: features(tuple(paths)))
        yield module


def evaluate(folder, name, round_, judge, shade, layout=0.2, features=0.3, images=IMAGES, full=True):
    """An evaluation of constant scores, with pictures of random colours around a shade."""
    chosen, count = range(PROMPTS) if full else SMALL, images if full else 1
    several = full and count > 1
    record = {
        "round": round_,
        "images_seen": 0,
        "seed": 0,
        "images_per_prompt": count,
        "prompts": [{"prompt": f"prompt {i}", "category": "one"} for i in chosen],
        "scores": {"shapes_judge": [[judge] * count for _ in chosen], "shapes_proxy": [[judge / 2] * count for _ in chosen]},
        "diversity": {"layout": [layout] * len(chosen), "features of shapes_proxy": [features] * len(chosen)} if several else {},
        "images": f"evaluations/{name}",
    }
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    (folder / "evaluations" / f"{name}.json").write_text(json.dumps(record))
    pictures, rng = folder / "evaluations" / name, np.random.default_rng(0)
    pictures.mkdir()
    for place in range(len(chosen)):
        colour = rng.integers(0, 60, 3) + shade
        for image in range(count):
            pixels = np.clip(colour + rng.integers(-20, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(pictures / f"{place:05d}-{image}.png")


def make_up(bench, row, seed, judges, seconds=10.0, shade=60, layout=0.2, features=0.3):
    """A finished run: small evaluations between a full one before and after, evenly spaced over its rounds and ``seconds``."""
    folder = bench.folder(row, seed)
    schema = {"dmd2": dmd2, "flash_dmd": flash_dmd}[bench.trainer(row)].Config
    arguments = ["--config", str(bench.config(row)), *bench.overrides(row), f"--run.seed={seed}", f"--run.name={folder.name}"]
    settings = config.load(schema, arguments)
    rounds = [round(settings.run.rounds * k / (len(judges) - 1)) for k in range(len(judges))]
    for number, (round_, judge) in enumerate(zip(rounds, judges, strict=True)):
        ends = number in (0, len(rounds) - 1)
        evaluate(folder, f"round-{round_:05d}", round_, judge, shade, layout, features, full=ends)
    evaluate(folder, "teacher", rounds[-1], 0.8, 60)
    evaluate(folder, "teacher-4", rounds[-1], 0.4, 120, images=1)
    every = seconds / settings.run.rounds
    (folder / "timing.jsonl").write_text("".join(f'{{"round": {r + 1}, "seconds": {every}}}\n' for r in range(settings.run.rounds)))
    (folder / "config.yaml").write_text(config.dump(settings))
    about = {"command": "trainers/x.py", "commit": "abc", "torch": "2", "diffusers": "0", "device": "cpu", "seed": seed}
    (folder / "versions.json").write_text(json.dumps(about))
    (folder / "summary.json").write_text(json.dumps({"judge": "shapes_judge", "proxy": "shapes_proxy"}))
    return settings


@pytest.fixture(scope="module")
def made_up(distill, tmp_path_factory):
    """Every row, two seeds."""
    bench = distill.Bench("shapes", tmp_path_factory.mktemp("runs"))
    for seed in (0, 1):
        make_up(bench, "dmd2", seed, [0.1, 0.5, 0.7 + seed / 50], seconds=100, shade=100)
        make_up(bench, "flash", seed, [0.1, 0.6, 0.72 + seed / 50, 0.7, 0.78 + seed / 50], seconds=60, layout=0.18)
        make_up(bench, "flash_joint", seed, [0.1, 0.85], layout=0.175, features=0.1)
        make_up(bench, "flash_then_rl", seed, [0.1, 0.82])
        make_up(bench, "rl_alone", seed, [0.1, 0.3])
    return bench


@pytest.fixture
def finished(distill, made_up, tmp_path):
    """The same runs, to be changed, and no networks that look at their pictures."""
    shutil.copytree(made_up.runs, tmp_path, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "distance", lambda shown, teacher: 0.1)
        yield distill.Bench("shapes", tmp_path)


@pytest.fixture(scope="module")
def measured(distill, made_up):
    return distill.result(made_up, [0, 1])


def test_rows_and_columns(distill, measured):
    content = measured
    assert list(content["figures"]) == list(distill.ROWS)
    figures = content["figures"]
    assert figures["dmd2"]["judge"]["mean"] == pytest.approx(0.71)
    low, high = figures["dmd2"]["judge"]["ci95"]
    assert (high - low) / 2 == pytest.approx(12.7062 * 0.01, rel=1e-4), "t of one degree of freedom, times .02 / sqrt 2 / sqrt 2"
    assert figures["dmd2"]["proxy"]["mean"] == pytest.approx(0.355) and figures["dmd2"]["seconds"]["mean"] == pytest.approx(100)
    assert figures["teacher_28"]["judge"]["mean"] == pytest.approx(0.8) and figures["teacher_4"]["judge"]["mean"] == pytest.approx(0.4)
    assert figures["teacher_28"].keys() == {"judge", "proxy", "diversity", "diversity_features"}
    assert figures["teacher_4"].keys() == {"judge", "proxy", "kid"}, "one image a prompt has no diversity"
    assert figures["flash"]["kid"]["mean"] == pytest.approx(0, abs=1e-9), "its pictures are the teacher's here"
    assert figures["dmd2"]["kid"]["mean"] > 0 and figures["teacher_4"]["kid"]["mean"] > 0
    first, *_ = [record for record in content["rows"] if record["row"] == "flash" and record["seed"] == 1]
    curve = np.array(first["curve"])
    assert curve[:, :2] == pytest.approx(np.array([[0, 0.1], [15, 0.6], [30, 0.74], [45, 0.7], [60, 0.8]]))
    assert (curve[:, 2] < min(record["curve"][-1][2] for record in content["rows"] if record["row"] == "dmd2")).all()
    assert first["versions"]["command"] == "python benchmarks/distill_shapes.py" and first["versions"]["commit"] == "abc"


def test_claims_on_made_up_runs(measured):
    found = measured["claims"]
    assert found["A"]["reached_s"] == [pytest.approx(30)] * 2
    numbers = found["A"]["numbers"]
    assert numbers["share of the seconds"]["mean"] == pytest.approx(0.3)
    assert numbers["lead at equal seconds"]["mean"] == pytest.approx(0.79 - 0.5), "after 60 seconds DMD2 is where it was after 50"
    assert numbers["KID above DMD2's then"]["mean"] < 0
    numbers = found["B"]["numbers"]
    assert numbers["judge kept"]["mean"] == pytest.approx(0.79 / 0.8) and numbers["diversity kept"]["mean"] == pytest.approx(0.9)
    numbers = found["C"]["numbers"]
    assert numbers["lead over flash"]["mean"] == pytest.approx(0.06) and numbers["lead over rl_alone"]["mean"] == pytest.approx(0.55)
    assert numbers["diversity of features kept"]["mean"] == pytest.approx(1 / 3), "told, but not decisive"
    assert [claim["holds"] for claim in found.values()] == [True] * 3


def records(**figures):
    """Row -> (judge, diversity[, KID]), as records of two seeds."""
    rows = {}
    for row, (judge, diversity, *far) in figures.items():
        own = {"judge": judge, "diversity": diversity, "diversity_features": 0.3, "seconds": 100.0}
        (distance,) = far or [0.3]
        rows[row] = [{"figures": own, "curve": [[0, 0.1, 0.9], [40, judge - 0.1, distance], [100, judge, distance]]}] * 2
    return rows


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, ""),
        ({"dmd2": (0.79, 0.2)}, "A"),
        ({"dmd2": (0.9, 0.2)}, "A"),  # never reached
        ({"dmd2": (0.05, 0.2, 0.95)}, "A"),  # by the untrained student already
        ({"flash": (0.8, 0.2, 0.5)}, "A"),  # the judge alone
        ({"dmd2": (0.7, 0.2, 0.2)}, "A"),
        ({"teacher_28": (0.85, 0.2)}, "B"),
        ({"teacher_28": (0.8, 0.24)}, "B"),
        ({"flash_joint": (0.84, 0.2)}, "C"),
        ({"flash_joint": (0.9, 0.18)}, "C"),
        ({"rl_alone": (0.95, 0.2)}, "C"),
        ({"flash_then_rl": (0.95, 0.2)}, "C"),
    ],
)
def test_a_claim_fails_where_it_should(distill, change, broken):
    rows = {"dmd2": (0.7, 0.2, 0.4), "teacher_28": (0.82, 0.2), "flash": (0.8, 0.2)}
    rows |= {"flash_joint": (0.9, 0.2), "flash_then_rl": (0.85, 0.2), "rl_alone": (0.4, 0.2)}
    found = distill.claims(records(**(rows | change)))
    assert [name for name, claim in found.items() if not claim["holds"]] == list(broken)


def test_claims_whose_rows_are_missing_are_left_out(distill):
    assert list(distill.claims(records(flash=(0.8, 0.2), teacher_28=(0.8, 0.2)))) == ["B"]
    assert distill.claims(records(dmd2=(0.8, 0.2))) == {}


def test_the_table(distill, measured):
    content = json.loads(json.dumps(measured))
    lines = distill.table(content).splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(distill.ROWS)
    assert {line.count("|") for line in lines if line.startswith("|")} == {lines[0].count("|")}
    assert rows[2].startswith("| `dmd2` | 0.710 ± 0.127 | 0.355 ± 0.064 |")
    assert [line[:12] for line in lines if line.startswith("*")] == ["* **Holds**:"] * 3
    content["claims"]["A"] |= {"holds": False, "numbers": {"share of the seconds": None}}
    assert "* **Does not hold**: Flash-DMD reaches" in distill.table(content) and "never reached" in distill.table(content)


def test_finished_rows_are_reused_and_only_unfinished_ones_trained(distill, finished, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(
        distill, "train", lambda trainer, config, folder, seed, overrides: trained.append((trainer, folder.name, overrides))
    )
    distill.main(["--folder", str(tmp_path), "--seeds", "0", "1"])
    assert trained == []
    content = json.loads((tmp_path / "distill_shapes.json").read_text())
    assert len(content["rows"]) == 2 * len(distill.ROWS) and distill.table(content) in capsys.readouterr().out
    for row in ("flash", "flash_joint"):
        (finished.folder(row, 1) / "summary.json").unlink()
    distill.main(["--folder", str(tmp_path), "--seeds", "0", "1", "--rows", "dmd2", "flash_joint"])
    plain = config.load(flash_dmd.Config, ["--config", str(finished.config("flash"))])
    pictures, joint = "--evaluation.pictures=all", f"--rl.start_round={plain.rl.start_round or plain.run.rounds // 2}"
    assert trained == [
        ("flash_dmd", "distill_shapes_flash_seed1", [pictures, "--rl.start_round=0"]),
        ("flash_dmd", "distill_shapes_flash_joint_seed1", [pictures, joint, "--rl.mode=joint", "--teacher.steps=0"]),
    ]
    # what is not finished for every seed is no row
    assert json.loads((tmp_path / "distill_shapes.json").read_text())["figures"] == {}, "the teacher is drawn with flash"
    (finished.folder("flash", 1) / "summary.json").write_text((finished.folder("flash", 0) / "summary.json").read_text())
    assert list(distill.result(finished, [0, 1])["figures"]) == ["teacher_28", "teacher_4", "dmd2", "flash", "flash_then_rl", "rl_alone"]


def test_a_run_under_other_settings_is_not_taken(distill, finished):
    path = finished.folder("dmd2", 0) / "config.yaml"
    path.write_text(path.read_text().replace("save_every_rounds:", "save_every_rounds: 1 #"))
    assert finished.finished("dmd2", 0)
    path.write_text(path.read_text().replace("fake_per_student: 5", "fake_per_student: 4"))
    with pytest.raises(ValueError, match="fake_per_student: 4 -> 5"):
        finished.finished("dmd2", 0)
    tuned = distill.Bench("shapes", finished.runs, ("rl.passes=7",))
    assert tuned.finished("flash", 0), "stage 1 knows nothing of it"
    with pytest.raises(ValueError, match=r"rl\.passes: \d -> 7"):
        tuned.finished("flash_joint", 0)


def test_overrides_are_for_trials(distill, tmp_path, capsys):
    with pytest.raises(SystemExit):
        distill.main(["--overrides", "run.rounds=4"])
    assert "--folder" in capsys.readouterr().err
    trial = distill.Bench("shapes", tmp_path, ("run.rounds=8", "rl.start_round=0", "fake_per_student=2"))
    assert trial.overrides("dmd2") == ["--run.rounds=8", "--fake_per_student=2", "--evaluation.pictures=all", "--teacher.steps=0"]
    own = ["--rl.start_round=4", "--rl.mode=joint", "--teacher.steps=0"]
    assert trial.overrides("flash_joint") == ["--run.rounds=8", "--rl.start_round=0", "--evaluation.pictures=all", *own]
