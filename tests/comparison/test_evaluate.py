"""``genrl evaluate`` from end to end, on the shapes world."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from genrl.cli import main
from genrl.comparison import evaluate as evaluation
from genrl.comparison import measuring
from genrl.evaluation.distances import Statistics

FEW = ["--prompts", "shapes", "--limit", "6", "--images", "2", "--batch", "12"]
SIBLINGS = '{"win_rate": {"preference": "jpeg_size"}}'
TWO = ["one=shapes?steps=1&guidance=1", "four=shapes?steps=4&guidance=1"]


def read(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    main(["evaluate", *TWO, *FEW, "--out", str(folder)])
    return folder


def test_it_measures_everything_and_says_who_is_better(done):
    result = read(done)
    assert result["base"] == "one" and [model["label"] for model in result["models"]] == ["one", "four"]
    assert np.array(result["scores"]["four"]["shapes_judge"]).shape == (6, 2)
    assert {"layout", "shapes", "vendi/shapes"} == set(result["diversity"]["four"])
    assert {"fd/shapes", "kid/shapes", "vendi/shapes"} <= set(result["distances"]["four"]) and set(result["distances"]["one"]) == {
        "vendi/shapes"
    }
    row = next(row for row in result["comparison"] if row["model"] == "four" and row["metric"] == "shapes_judge")
    assert {"mean", "ci95", "difference", "difference_ci95", "p_adjusted", "win_rate", "win_ci95", "minimum_detectable", "verdict"} <= set(
        row
    )
    assert len(result["protocol"]["prompts"]) == 6 and result["protocol"]["leaked"] == []
    assert (done / "evaluation.html").stat().st_size > 10_000


def test_the_figures_are_those_of_the_scores(done):
    result = read(done)
    four, one = (np.array(result["scores"][label]["shapes_judge"]).mean(1) for label in ("four", "one"))
    row = next(row for row in result["comparison"] if row["model"] == "four" and row["metric"] == "shapes_judge")
    assert row["difference"] == pytest.approx((four - one).mean()) and row["mean"] == pytest.approx(four.mean())
    assert row["win_rate"] == pytest.approx(((four > one) + 0.5 * (four == one)).mean())


def test_like_repeats_it_to_the_last_digit(done, tmp_path, capsys):
    main(["evaluate", "--like", str(done / "result.json"), "--batch", "12", "--out", str(tmp_path)])
    assert "means are those of the earlier result, to the last digit" in capsys.readouterr().out
    assert read(tmp_path)["protocol"]["prompts"] == read(done)["protocol"]["prompts"]


def test_like_takes_other_models_and_changes(done, tmp_path, capsys):
    main(["evaluate", "one=shapes?steps=1&guidance=1", "--like", str(done), "--images", "1", "--features", "--out", str(tmp_path)])
    result = read(tmp_path)
    assert result["protocol"]["images_per_prompt"] == 1 and result["protocol"]["extractors"] == []
    assert [row["model"] for row in result["comparison"]] == ["one", "one"]
    assert "earlier result" in capsys.readouterr().out


def test_a_folder_of_pictures_made_elsewhere(done, tmp_path, capsys):
    lines = []
    (tmp_path / "mine").mkdir()
    for place, prompt in enumerate(["a red circle", "a blue square", "nothing at all"]):
        Image.fromarray(np.full((64, 64, 3), 60 * place, np.uint8)).save(tmp_path / "mine" / f"{place}.png")
        lines.append(json.dumps({"image": f"{place}.png", "prompt": prompt}))
    (tmp_path / "mine" / "images.jsonl").write_text("\n".join(lines))
    main(["evaluate", str(tmp_path / "mine"), "--rewards", "shapes_proxy", "--features", "--out", str(tmp_path / "out")])
    result = read(tmp_path / "out")
    assert result["protocol"]["images_per_prompt"] == 1, "as many as there are"
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "on the same prompts" in page and "same seed" not in page, "nobody knows their seeds"
    assert [prompt["prompt"] for prompt in result["protocol"]["prompts"]] == ["a red circle", "a blue square", "nothing at all"]
    assert result["models"][0]["kind"] == "pictures" and result["models"][0]["settings"] is None


def test_a_reward_of_one_s_own_with_options(done, tmp_path):
    (tmp_path / "own.py").write_text("def level(images, prompts, metadata, scale=1.0):\n    return scale * images.mean((1, 2, 3))\n")
    command = ["evaluate", *TWO, *FEW, "--features", "--rewards", f"light={tmp_path / 'own.py'}:level", "--out", str(tmp_path / "out")]
    main([*command, "--reward-options", '{"light": {"scale": 2}}'])
    result = read(tmp_path / "out")
    assert result["protocol"]["rewards"]["light"]["options"] == {"scale": 2}
    with Image.open(tmp_path / "out" / "models" / "one" / "00000-0.png") as picture:
        level = 2 * np.asarray(picture).mean() / 255
    assert result["scores"]["one"]["light"][0][0] == pytest.approx(level, rel=1e-4)


def test_several_steps_make_a_curve(tmp_path):
    main(
        [
            "evaluate",
            "shapes",
            "--steps",
            "1",
            "2",
            "--guidance",
            "1",
            *FEW,
            "--features",
            "--rewards",
            "shapes_judge",
            "--out",
            str(tmp_path),
        ]
    )
    assert [(point["source"], point["steps"]) for point in read(tmp_path)["curve"] if point["metric"] == "shapes_judge"] == [
        ("shapes", 1),
        ("shapes", 2),
    ]


def test_distances_to_real_pictures_and_to_their_statistics(done, tmp_path):
    from genrl.worlds.shapes.scenes import random_scene, render

    rng = np.random.default_rng(0)
    (tmp_path / "real").mkdir()
    for number in range(20):
        pixels = (np.asarray(render(random_scene(rng))).transpose(1, 2, 0) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "real" / f"{number}.png")
    main(["evaluate", *TWO, *FEW, "--rewards", "shapes_judge", "--reference", str(tmp_path / "real"), "--out", str(tmp_path / "a")])
    first = read(tmp_path / "a")
    assert {"fd/shapes", "kid/shapes", "precision/shapes", "coverage/shapes"} <= set(first["distances"]["one"])
    assert first["protocol"]["reference"] == {"source": str(tmp_path / "real"), "images": 20}
    kept = tmp_path / "a" / "features" / "reference"
    assert Statistics.load(kept / "shapes.safetensors").count == 20
    main(["evaluate", *TWO, *FEW, "--rewards", "shapes_judge", "--reference", str(kept), "--out", str(tmp_path / "b")])
    second = read(tmp_path / "b")
    assert second["distances"]["one"]["fd/shapes"]["value"] == pytest.approx(first["distances"]["one"]["fd/shapes"]["value"], rel=1e-4)


def test_features_are_computed_once(tmp_path):
    calls, extraction = [], measuring.Extraction(["shapes"], tmp_path, "cpu")

    def pictures():
        calls.append(1)
        yield torch.zeros(2, 3, 64, 64)

    first = extraction.of("x", "same", pictures)
    again = measuring.Extraction(["shapes"], tmp_path, "cpu").of("x", "same", pictures)
    assert len(calls) == 1 and torch.equal(first["shapes"], again["shapes"])
    extraction.of("x", "other", pictures)
    assert len(calls) == 2


def test_leaks_are_told(tmp_path, capsys):
    (tmp_path / "train.txt").write_text("A Red circle!\n")
    (tmp_path / "set.txt").write_text("a red circle\na blue ring\n")
    command = ["evaluate", TWO[0], "--prompts", str(tmp_path / "set.txt"), "--rewards", "shapes_proxy", "--features", "--images", "1"]
    main([*command, "--train-prompts", str(tmp_path / "train.txt"), "--out", str(tmp_path / "out")])
    assert read(tmp_path / "out")["protocol"]["leaked"] == ["a red circle"]
    assert "1 of 2 prompts were trained on" in capsys.readouterr().out


def test_the_sets_are_listed(capsys):
    main(["evaluate", "--list-prompts"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("mini", "compose", "text", "partiprompts"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name what to evaluate"),
        (["--rewards", "jpeg_size", "shapes"], "before the options"),
        (["shapes", "--prompts", "mini", "--limit", "1"], "some need no weights: --rewards jpeg_size --features"),
        (["shapes", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["shapes", "--prompts", "mini", "--rewards", "shapes_judge"], "reads 'objects' from each prompt's metadata"),
        (["shapes", "--prompts", "shapes", "--rewards", "no_such"], "no reward named 'no_such'"),
        (["shapes", "--prompts", "shapes", "--rewards", "a=shapes_judge", "a=shapes_proxy"], "two rewards are called 'a'"),
        (["shapes", "--prompts", "shapes", "--reward-options", '{"x": {}}'], "--reward-options names x"),
        (["shapes", "--prompts", "shapes", "--images", "0"], "at least one is drawn"),
        (["shapes", "--prompts", "shapes", "--features", "nonsense", "--limit", "1"], "no features named 'nonsense'"),
        (["shapes", "--prompts", "shapes", "--reference", "nowhere", "--limit", "1"], "no reference 'nowhere'"),
        (["shapes?colour=red", "--prompts", "shapes"], "has no setting 'colour'"),
        (["--like", "nowhere.json"], "cannot read 'nowhere.json'"),
        (["shapes", "--prompts", "shapes", "--rewards", "diversity: layout=jpeg_size"], "cannot be called 'diversity: layout'"),
        (["shapes", "--prompts", "shapes", "--batch", "0"], "--batch 0: at least one picture"),
        (["shapes", "--prompts", "shapes", "--steps", "0"], "steps must be a whole number above 0; got 0"),
        (["shapes", "--prompts", "shapes", "--rewards", "jpeg_size", "--reward-options", '{"jpeg_size": 5}'], "jpeg_size are no object"),
        (["shapes", "--prompts", "shapes", "--rewards", "win_rate", "--reward-options", SIBLINGS], "every model has the same mean"),
    ],
)
def test_a_foreseen_failure_is_one_message(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments, "--out", str(tmp_path)])
    assert stopped.value.code == 1 and words in capsys.readouterr().err


def test_a_prompt_that_stands_twice(tmp_path, capsys):
    (tmp_path / "set.txt").write_text("a\na\n")
    with pytest.raises(SystemExit):
        main(["evaluate", "shapes", "--prompts", str(tmp_path / "set.txt"), "--rewards", "shapes_proxy", "--out", str(tmp_path)])
    assert "has 'a' twice" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", TWO[0], *FEW, "--device", "cuda", "--out", str(tmp_path)])
    assert "torch sees no GPU here" in capsys.readouterr().err


def test_fewer_images_in_the_same_folder_are_other_features(done, tmp_path):
    """What is in a folder of an evaluation of more images must not be taken for the features of fewer."""
    shutil.copytree(done, tmp_path / "again")
    for folder in ("again", "fresh"):
        main(["evaluate", *TWO, *FEW, "--images", "1", "--rewards", "jpeg_size", "--out", str(tmp_path / folder)])
    again, fresh = read(tmp_path / "again"), read(tmp_path / "fresh")
    assert again["scores"] == fresh["scores"]
    for name, entry in fresh["distances"]["four"].items():
        assert again["distances"]["four"][name]["value"] == pytest.approx(entry["value"], rel=1e-6), name


def test_several_pictures_of_a_prompt_in_an_index(tmp_path):
    (tmp_path / "mine").mkdir()
    lines = []
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(tmp_path / "mine" / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "prompt": f"prompt {number // 2}"}))
    (tmp_path / "mine" / "images.jsonl").write_text("\n".join(lines))
    command = ["evaluate", str(tmp_path / "mine"), "--rewards", "jpeg_size", "--features", "--images", "2"]
    main([*command, "--out", str(tmp_path / "out")])
    assert [prompt["prompt"] for prompt in read(tmp_path / "out")["protocol"]["prompts"]] == ["prompt 0", "prompt 1", "prompt 2"]


def test_the_same_pictures_of_one_prompt(tmp_path, capsys):
    """Nothing can be compared, and everything that can be had is there."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for image in range(2):
            Image.new("RGB", (64, 64), (90, 0, 0)).save(tmp_path / label / f"0-{image}.png")
    (tmp_path / "p.txt").write_text("a red square\n")
    command = ["evaluate", *(str(tmp_path / label) for label in ("a", "b")), "--prompts", str(tmp_path / "p.txt"), "--images", "2"]
    main([*command, "--rewards", "jpeg_size", "--features", "shapes", "--out", str(tmp_path / "out")])
    result = read(tmp_path / "out")
    assert result["scores"]["a"] == result["scores"]["b"] and result["distances"]["b"].keys() == {"vendi/shapes", "fd/shapes"}
    assert "b cannot be compared by jpeg_size" in capsys.readouterr().out


def test_an_interruption_is_one_word(tmp_path, capsys, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("genrl.comparison.evaluate.draw", stopped)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", TWO[0], *FEW, "--features", "--out", str(tmp_path)])
    assert ended.value.code == 130 and capsys.readouterr().err.strip() == "interrupted"


def test_the_commit_is_of_this_checkout_alone(tmp_path, monkeypatch):
    """Without git there is none, and the repository that an environment lies in is not ours."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert evaluation._commit() == ""
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "__file__", str(tmp_path / "site-packages/genrl/comparison/evaluate.py"))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=False)
    assert evaluation._commit() == ""
