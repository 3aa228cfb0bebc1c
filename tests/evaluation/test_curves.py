"""A run against its reference: the band covers what it should, and what leaves it is named, with its round and side."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import EVERY, PROMPTS, ROUNDS, make_run, write_lines
from scipy import stats

from genrl.evaluation import bands, curves
from genrl.evaluation.bands import NEAR, band, curves_of, reference_of
from genrl.evaluation.curves import PATIENCE, compare_run, follow, hint, load_reference, words

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"seed{seed}", seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def reference(runs):
    path = runs[0].parent / "made_up.json"
    path.write_text(json.dumps(reference_of(runs, "made_up", "python somewhere.py")))
    return path


def course_of(comparison, metric):
    (found,) = [course for course in comparison.courses if course.metric == metric]
    return found


# -- the band


def test_the_band_is_a_prediction_interval():
    seeds = [{r: mean + r for r in range(1, 8)} for mean in (1.0, 2.0, 3.0)]
    found = band(seeds)
    half = stats.t.ppf(0.975, 2) * 1.0 * np.sqrt(4 / 3)
    assert found["round"] == list(range(1, 8)) and found["mean"] == [r + 2 for r in range(1, 8)]
    assert found["high"] == pytest.approx([r + 2 + half for r in range(1, 8)], rel=1e-3)
    assert found["low"] == pytest.approx([r + 2 - half for r in range(1, 8)], rel=1e-2)


def test_agreement_by_chance_does_not_close_the_band():
    """At one round all seeds agree; the variance there is that of its neighbours."""
    values = np.array([[-1.0] * 11, [0.0] * 11, [1.0] * 11])
    values[:, 5] = 0.0
    found = band([dict(enumerate(row)) for row in values.tolist()])
    width = 2 * NEAR + 1
    assert found["high"][5] == pytest.approx(found["high"][0] * np.sqrt((width - 1) / width), rel=1e-3)


def test_seeds_that_agree_everywhere_leave_a_little_room():
    found = band([{1: 1.0, 2: 1.0}] * 3)
    assert found["low"] == [0.999, 0.999] and found["high"] == [1.001, 1.001]


def test_the_floor_is_the_luck_of_pictures(runs, reference):
    """Means may agree by chance; the luck of pictures, 0.05 each, over 2 of each of 12 prompts, says how far to trust that."""
    agree = [{0: 0.4, 10: 0.4}] * 3
    error = 0.05 / np.sqrt(2 * PROMPTS / 2)
    found = band(agree, {0: error, 10: error})
    assert found["high"] == pytest.approx([0.4 + 1.96 * error * np.sqrt(4 / 3)] * 2, rel=1e-3)
    keys = bands.common_keys([e for run in runs for e in bands.evaluations_of(run)])
    luck = bands._luck(runs, keys)["held_out/judge"]
    assert len(keys) == PROMPTS / 2 and sorted(luck) == list(range(0, ROUNDS + 1, EVERY))
    assert np.mean(list(luck.values())) == pytest.approx(error, rel=0.25)


@pytest.mark.parametrize(("slow", "quick", "least", "most"), [(1.0, 0.1, 0.02, 0.08), (0.0, 1.0, 0.0, 0.01), (0.7, 0.7, 0.0, 0.05)])
def test_a_healthy_run_leaves_as_rarely_as_is_said(slow, quick, least, most):
    """Exchangeable runs with an offset of their own and noise of each round: at most about 1 in 20 leaves."""
    rng = np.random.default_rng(4)
    every = slow * rng.normal(size=(600, 4, 1)) + quick * rng.normal(size=(600, 4, 40))
    left = [follow("policy/w2", dict(enumerate(r[3])), band([dict(enumerate(v)) for v in r[:3]])).leaves is not None for r in every]
    assert least <= np.mean(left) <= most


# -- the comparison


def test_a_run_like_the_others_is_inside_everywhere(tmp_path, reference):
    comparison = compare_run(make_run(tmp_path / "run", 4), reference)
    assert comparison.inside and comparison.sentence == "inside everywhere" and not comparison.differences and not comparison.missing
    expected = "critic/explained_variance held_out/diversity/layout held_out/judge held_out/proxy mix/valid policy/w2 reward/proxy/mean"
    assert sorted(course.metric for course in comparison.courses) == expected.split()
    assert course_of(comparison, "policy/w2").points == ROUNDS and course_of(comparison, "held_out/judge").points == ROUNDS / EVERY + 1
    assert words(comparison).endswith("\ninside everywhere")


@pytest.mark.parametrize(("factor", "side"), [(5.0, "above"), (0.2, "below")])
def test_where_a_run_leaves_is_told(tmp_path, reference, factor, side):
    comparison = compare_run(make_run(tmp_path / "run", 4, w2=factor), reference)
    course = course_of(comparison, "policy/w2")
    assert not comparison.inside and (course.leaves, course.side, course.worst_side) == (12, side, side)
    content = load_reference(reference)["curves"]["policy/w2"]
    values = curves_of(tmp_path / "run")["policy/w2"]
    half = {r: h - m for r, m, h in zip(content["round"], content["mean"], content["high"], strict=True)}
    mean = dict(zip(content["round"], content["mean"], strict=True))
    assert course.worst == pytest.approx(abs(values[course.worst_round] - mean[course.worst_round]) / half[course.worst_round], rel=0.02)
    assert comparison.sentence == f"leaves the band at round 12: policy/w2 {side} ({course.worst:.1f} half widths)"
    told = words(comparison)
    assert f"policy/w2 {side}: {hint('policy/w2', side)}" in told and told.endswith(comparison.sentence)


def test_held_out_curves_are_judged_by_themselves(tmp_path, reference):
    comparison = compare_run(make_run(tmp_path / "run", 4, gain=-0.02), reference)
    assert (course_of(comparison, "held_out/judge").leaves, course_of(comparison, "held_out/judge").side) == (EVERY, "below")
    assert course_of(comparison, "policy/w2").leaves is None


def test_single_rounds_outside_are_no_leaving():
    points = {"round": list(range(9)), "mean": [0.0] * 9, "low": [-1.0] * 9, "high": [1.0] * 9}

    def leaves(*values, metric="policy/w2"):
        return follow(metric, dict(enumerate(values)), points).leaves

    assert leaves(0, *[2] * (PATIENCE - 1), 0, *[2] * (PATIENCE - 1)) is None
    assert leaves(2, -2, 2, -2, 2, -2) is None
    assert leaves(0, 2, 0, *[-2] * PATIENCE) == 3
    assert leaves(0, 2, metric="held_out/judge") == 1
    assert leaves(0, 0, -curves.FAR - 0.1) == 2 and leaves(0, 2, curves.FAR + 0.1) == 1, "what is far outside needs no second round"
    assert follow("policy/w2", {20: 1.0}, points) is None


def test_a_run_that_goes_on_is_compared_as_far_as_it_is(tmp_path, reference):
    run = make_run(tmp_path / "run", 4, rounds=17, w2=5.0, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 18, "policy/w')
    (run / "evaluations" / "round-00020.json").write_text('{"round": 20, "scor')
    comparison = compare_run(run, reference)
    assert comparison.rounds == 17 and course_of(comparison, "policy/w2").leaves == 12
    # before anything but the base was judged, on more prompts than the reference has in all evaluations
    (run / "evaluations" / "round-00010.json").unlink()
    assert course_of(compare_run(run, reference), "held_out/judge").points == 1


def test_other_settings_and_missing_metrics_are_said(tmp_path, reference):
    run = make_run(tmp_path / "run", 4, beta=0.5)
    lines = [{k: v for k, v in json.loads(line).items() if k != "policy/w2"} for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", lines)
    comparison = compare_run(run, reference)
    assert comparison.differences == ("actor.beta 0.5 (reference: 0.15)",) and comparison.missing == ("policy/w2",)
    assert "warning: other settings: actor.beta 0.5" in words(comparison)
    (run / "config.yaml").unlink()
    assert "config.yaml is missing" in compare_run(run, reference).differences[0]


def test_other_prompts_are_not_compared(tmp_path, reference):
    content = json.loads(reference.read_text())
    content["prompts"] = [["something else", 0]]
    (tmp_path / "other.json").write_text(json.dumps(content))
    comparison = compare_run(make_run(tmp_path / "run", 4), tmp_path / "other.json")
    assert {"held_out/judge", "held_out/diversity/layout"} <= set(comparison.missing)


def test_what_cannot_be_compared_is_refused(tmp_path, reference, monkeypatch):
    run = make_run(tmp_path / "run", 4)
    package = tmp_path / "package" / "references"
    package.mkdir(parents=True)
    monkeypatch.setattr(curves.resources, "files", lambda _: package.parent)
    with pytest.raises(FileNotFoundError, match="no reference curve 'shapes', neither a name nor a file; none ships"):
        compare_run(run, "shapes")
    shutil.copy(reference, package / "shapes_full.json")
    with pytest.raises(FileNotFoundError, match="did you mean shapes_full"):
        compare_run(run, "shapes")
    assert compare_run(run, "shapes_full").inside
    (package / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        compare_run(run, "broken")
    (package / "empty.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="is no reference curve: it lacks rounds, seeds"):
        compare_run(run, "empty")
    with pytest.raises(FileNotFoundError, match=r"has no metrics\.jsonl"):
        compare_run(tmp_path, "shapes_full")
    write_lines(run / "metrics.jsonl", [])
    shutil.rmtree(run / "evaluations")
    with pytest.raises(ValueError, match="has no metric at a round of the reference 'made_up'"):
        compare_run(run, "shapes_full")


def test_every_metric_that_has_a_curve_has_a_hint():
    names = ["held_out/x", "held_out/diversity/x", "student/fake_distance", "policy/w2", "policy/kl", "policy/clipped", "policy/weight_std"]
    names += ["policy/ratio_off_one", *(told.replace("*", "x") for told in bands.TOLD if told != "policy/*")]
    assert all(hint(name, side) for name in names for side in ("above", "below"))


# -- making a reference


def test_runs_that_do_not_belong_together_make_no_reference(tmp_path, runs):
    with pytest.raises(ValueError, match="two seeds or more"):
        reference_of(runs[:1], "x", "")
    with pytest.raises(ValueError, match="one seed twice"):
        reference_of([runs[0], make_run(tmp_path / "same", 1)], "x", "")
    with pytest.raises(ValueError, match=r"other settings than .*actor\.beta 0\.5"):
        reference_of([runs[0], make_run(tmp_path / "beta", 5, beta=0.5)], "x", "")
    with pytest.raises(ValueError, match=r"without summary\.json"):
        reference_of([runs[0], make_run(tmp_path / "half", 5, finished=False)], "x", "")


def test_the_script_writes_a_small_file_that_compares(tmp_path, runs, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("reference_curves", BENCHMARKS / "reference_curves.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr("sys.argv", ["reference_curves.py", "--runs", *map(str, runs), "--name", "made_up", "--out", str(tmp_path)])
    script.main()
    path = tmp_path / "made_up.json"
    content = json.loads(path.read_text())
    assert content == reference_of(runs, "made_up", content["command"])
    assert content["config"] == "ac_flow/made_up.yaml" and content["seeds"] == [1, 2, 3] and content["rounds"] == ROUNDS
    assert content["command"].endswith("--runs runs/seed1 runs/seed2 runs/seed3 --name made_up") and str(tmp_path) not in path.read_text()
    assert not any(name.startswith("run.") for name in content["settings"]) and content["settings"]["actor.beta"] == 0.15
    assert path.stat().st_size < 20_000 and "made_up.json: 7 metrics over 30 rounds" in capsys.readouterr().out
    assert compare_run(make_run(tmp_path / "run", 4), path).inside


def test_what_is_no_number_is_no_value(tmp_path, reference):
    """NaN lies inside no band: it must not pass for a healthy round."""
    run = make_run(tmp_path / "run", 4)
    lines = [json.loads(line) | {"policy/w2": float("nan")} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "policy/w2" not in curves_of(run) and compare_run(run, reference).missing == ("policy/w2",)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("prompts", [5], "prompts cannot be read"),
        ("prompts", "x", "prompts cannot be read"),
        ("seeds", None, "seeds cannot be read"),
        ("curves", [], "curves cannot be read"),
        ("curves", {"policy/w2": {"round": [1]}}, "policy/w2 cannot be read"),
        ("curves", {"policy/w2": {"round": [1], "mean": [0], "low": [0, 1], "high": [1]}}, "policy/w2 cannot be read"),
        ("curves", {"policy/w2": {"round": [1], "mean": [float("nan")], "low": [0], "high": [1]}}, "policy/w2 cannot be read"),
        ("curves", {"policy/w2": {"round": ["x"], "mean": [0], "low": [0], "high": [1]}}, "policy/w2 cannot be read"),
    ],
)
def test_a_malformed_reference_is_one_message(tmp_path, runs, reference, key, value, words):
    (tmp_path / "bad.json").write_text(json.dumps(json.loads(reference.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=words):
        compare_run(runs[0], tmp_path / "bad.json")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- 1\n"])
def test_settings_that_cannot_be_read(tmp_path, reference, content):
    run = make_run(tmp_path / "run", 4)
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml holds no settings"):
        compare_run(run, reference)
