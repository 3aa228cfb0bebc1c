"""UnifiedReward: the published instructions to the letter, what counts as an answer, and the picture that is sent."""

import hashlib
import os

import pytest
import torch
from chat_server import says, serving

from genrl.pixels import to_pil
from genrl.reward import RewardError, about
from genrl.rewards.unified_reward import FORMS, UnifiedReward

# SHA-256 of the instructions of github CodeGoat24/UnifiedReward with the caption "a cat": sglang_llava/sglang_inference.py,
# inference_qwen/image_generation/qwen_point_score_image_generation.py, inference_qwen/UnifiedReward-2.0-inference/
# point_score_ACS_image_generation.py
PUBLISHED = {
    "score": "35d9122a4e2879a5c90000b2ea6ce4ba1d834f17cf1a41483fe951b20c6e5573",
    "elements": "6bdee83b5bdc3b30f459a667f0644f5e4197513f9e9705d6a237298f76a11329",
    "axes": "379dc993dcc83ba3aefadffac143035c9c7578e59751212f6d16f9fc021ab5a9",
}
THREE = "Alignment Score (1-5): 2.694700002670288\nCoherence Score (1-5): 2.25\nStyle Score (1-5): 4"


def scored(said, picture=None, **options):
    picture = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0)) if picture is None else picture
    with serving(lambda *_: says(said)) as seen:
        (found,) = UnifiedReward(seen.url, backoff_s=0.01, **options)(picture, ["a cat"], [{}])
    return found, seen


@pytest.mark.parametrize("form", FORMS)
def test_the_instruction_is_the_published_one(form):
    _, seen = scored("Final Score: 3", form=form)
    assert hashlib.sha256(seen.text().encode()).hexdigest() == PUBLISHED[form], seen.text()
    assert seen.text().endswith("Text Caption: [a cat]")
    sent = {key: value for key, value in seen.bodies[0].items() if key != "messages"}
    assert sent == {"model": "UnifiedReward", "temperature": 0, "max_tokens": 4096}
    assert [part["type"] for part in seen.bodies[0]["messages"][0]["content"]] == ["image_url", "text"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        *[("cat (object): 1\nFinal Score: 3.5", 3.5), ("Final Score:4", 4), ("Final Score: 1", 1), ("Final Score: 5.0", 5)],
        *[(f"Final Score: {number}", None) for number in ("45", "0", "-3", "5.5", "four")],
        *[(said, None) for said in ("4", "", None, THREE)],
    ],
)
def test_the_final_score_or_nan(said, expected):
    for form in ("score", "elements"):
        found, _ = scored(said, form=form, size=0)
        assert found == expected if expected is not None else found != found


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("alignment", "coherence", "style"), (2.694700002670288 + 2.25 + 4) / 3),
        (("style",), 4),
        (("alignment", "style"), 3.34735),
    ],
)
def test_the_mean_of_the_axes(axes, expected):
    assert scored(THREE, form="axes", axes=axes, size=0)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("said", [THREE.replace("Style", "Taste"), THREE.replace("): 4", "): 6"), "Final Score: 3"])
def test_a_missing_axis_or_one_off_the_scale_is_nan(said):
    found, _ = scored(said, form="axes", size=0)
    assert found != found


def test_an_axis_that_was_not_chosen_may_be_missing():
    assert scored(THREE.replace("Style", "Taste"), form="axes", axes=["coherence"], size=0)[0] == 2.25


def test_pictures_are_squashed_as_pil_does_it_or_left_alone():
    picture = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(3))
    (pil,) = to_pil(picture)
    for size, expected in ((512, pil.resize((512, 512))), (0, pil)):
        _, seen = scored("Final Score: 3", picture, size=size)
        (pixels,) = seen.pixels()
        assert bytes(pixels.permute(1, 2, 0).contiguous().numpy().tobytes()) == expected.tobytes()


def test_bad_options_and_what_it_says_of_itself():
    for options in ({"form": "short"}, {"form": "axes", "axes": ["beauty"]}, {"axes": []}):
        with pytest.raises(RewardError, match="must be"):
            UnifiedReward("http://127.0.0.1:1/v1", **options)
    said = about(UnifiedReward("http://127.0.0.1:1/v1"))
    assert said.scale == 5 and said.bounds == (1, 5) and said.kind == "pointwise"


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="needs a served UnifiedReward-2.0: set GENRL_WEIGHTS=1, GENRL_UNIFIED_URL")
def test_the_published_model_grades_a_matching_picture_higher():
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(2, 3, 256, 256)
    judge = UnifiedReward(os.environ["GENRL_UNIFIED_URL"], form="axes", axes=["alignment"])
    right, wrong = judge(red, ["a plain red picture", "two dogs on a beach"], [{}, {}])
    assert right > wrong + 0.5
