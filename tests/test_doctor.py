"""The doctor finds what is wrong with a reward, and nothing where nothing is."""

import json

import pytest
import torch

from genrl.doctor import examine
from genrl.doctor.shown import golden_picture, pictures
from genrl.pixels import to_pil
from genrl.reward import RewardError

HEAD = """
import torch
from genrl.reward import About
from genrl.rewards.shapes_judge import ShapesJudge

def judged(images, prompts, metadata):
    return torch.tensor(ShapesJudge()(images, prompts, metadata))

def brightness(images):
    return images.mean((1, 2, 3))
"""
SILENT = "about = About(reads_prompt=False"


def findings(tmp_path, body, **options):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + body)
    return {finding.check: finding for finding in examine(f"{path}:Mine", size=64, **options)}


def reward(lines, about=f"{SILENT})"):
    """A class whose call is these lines."""
    inner = "\n".join(f"        {line}" for line in lines.split("\n"))
    return f"class Mine:\n    {about}\n    n = 0\n    def __call__(self, images, prompts, metadata):\n{inner}\n"


def test_a_healthy_reward_has_no_failed_finding(tmp_path):
    found = findings(tmp_path, reward("return judged(images, prompts, metadata)", "about = About(bounds=(0.0, 1.0))"))
    assert {f.status for f in found.values()} <= {"ok", "skip"}, found
    assert {"loads", "licence", "packages", "scores", "repeats", "varies", "shuffled prompts", "pairing", "speed"} <= found.keys()
    assert float(found["shuffled prompts"].words.split("worth +")[1].split()[0]) > 0.5


@pytest.mark.parametrize(
    ("lines", "about", "check", "status"),
    [
        ("return [0.5] * len(prompts)", f"{SILENT})", "varies", "fail"),
        ("return brightness(images)", "about = About()", "shuffled prompts", "fail"),  # claims to read prompts
        ("return judged(images, prompts[1:] + prompts[:1], metadata[1:] + metadata[:1])", "about = About()", "shuffled prompts", "fail"),
        ("x = brightness(images)\nreturn x - x.mean()", f"{SILENT})", "pairing", "fail"),  # depends on its batch
        ("return (20 * brightness(images)).bfloat16()", f"{SILENT})", "dtype", "warn"),
        ("return brightness(images) + torch.rand(len(prompts))", f"{SILENT})", "repeats", "warn"),
        ("return brightness(images) * 3", f"{SILENT}, bounds=(0.0, 1.0))", "scores", "fail"),
        ("return [float('nan')] * len(prompts)", f"{SILENT})", "scores", "fail"),
        ("return brightness(images)[1:]", f"{SILENT})", "scores", "fail"),
        ("raise KeyError('weights')", f"{SILENT})", "scores", "fail"),
        ("return brightness(images)", f"{SILENT}, differentiable=True)", "gradient", "ok"),
        ("return brightness(images).tolist()", f"{SILENT}, differentiable=True)", "gradient", "fail"),
        ("return brightness(images.detach()) + 0 * brightness(images)", f"{SILENT}, differentiable=True)", "gradient", "fail"),
        ("return brightness(images)", f"{SILENT}, packages=('no-such-thing',))", "packages", "fail"),
        ("return brightness(images)", f"{SILENT}, license='unknown')", "licence", "warn"),
        ("return brightness(images)", f"{SILENT}, golden=(('grey', '', 128 / 255, 1e-4),))", "golden scores", "ok"),
        ("return brightness(images)", f"{SILENT}, golden=(('grey', '', 0.4, 1e-4),))", "golden scores", "fail"),
        ("return brightness(images)", "about = About(metadata=('reference',))", "scores", "skip"),
    ],
)
def test_every_fault_has_its_finding(tmp_path, lines, about, check, status):
    found = findings(tmp_path, reward(lines, about))
    assert found[check].status == status, found


def test_what_cannot_be_scored_is_not_examined_further(tmp_path):
    found = findings(tmp_path, reward("return [None] * len(prompts)"))
    assert "--pictures" in found["scores"].words and "pairing" not in found and "shuffled prompts" not in found


def test_a_reward_that_does_not_load_is_one_finding():
    (finding,) = examine("no_such_reward")
    assert finding.status == "fail" and "no reward named" in finding.words


def test_the_place_that_a_preference_model_favours_is_told(tmp_path):
    body = (
        "class Mine:\n    about = About(kind='pairwise', reads_prompt=False)\n"
        "    def compare(self, first, second, prompts, metadata):\n"
        "        return (torch.sigmoid(brightness(first) - brightness(second)) + BIAS).clamp(0, 1)\n"
    )
    assert findings(tmp_path, body.replace("BIAS", "0"))["order"].status == "ok"
    told = findings(tmp_path, body.replace("BIAS", "0.2"))["order"]
    assert told.status == "warn" and "+0.200" in told.words


def test_a_group_reward_is_shown_one_prompt(tmp_path):
    lines = "assert len(set(prompts)) == 1\nreturn brightness(images).argsort().argsort()"
    found = findings(tmp_path, reward(lines, "about = About(kind='group')"))
    assert found["scores"].status == "ok" and "pairing" not in found


def test_pictures_of_ones_own(tmp_path):
    images, prompts, _ = pictures(32, 3)
    for number, picture in enumerate(to_pil(images)):
        picture.save(tmp_path / f"{number}.png")
    lines = [json.dumps({"image": f"{i}.png", "prompt": text, "count": i}) for i, text in enumerate(prompts)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    body = reward("return [m['count'] * 1.0 for m in metadata]", "about = About(reads_prompt=False, metadata=('count',))")
    assert findings(tmp_path, body, own=tmp_path / "own.jsonl")["scores"].words == "0 to 2 over 3 of 3 pictures"
    (tmp_path / "own.jsonl").write_text('{"image": "none.png", "prompt": "a"}')
    assert "own.jsonl:1" in findings(tmp_path, body, own=tmp_path / "own.jsonl")["loads"].words


def test_golden_pictures_are_what_they_are_called():
    assert golden_picture("grey").unique().tolist() == pytest.approx([128 / 255])
    assert golden_picture("checkerboard").mean().item() == pytest.approx(0.5)
    assert torch.equal(golden_picture("gradient")[0, 0, 0] * 255, torch.arange(256.0))
    assert golden_picture("blurred").std() < golden_picture("checkerboard").std()
    with pytest.raises(RewardError, match="no golden picture"):
        golden_picture("sunset")
