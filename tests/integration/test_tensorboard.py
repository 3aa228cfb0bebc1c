"""A run that logs to TensorBoard: its pictures are there, by prompt, and no calibration curves."""

import io

import pytest
import tiny_runs
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from genrl import trainer


@pytest.fixture
def drawn(monkeypatch):
    """Names of the folders that evaluations were asked to put their pictures into."""
    names, judge = [], trainer.judge_images

    def spy(*arguments):
        names.append(arguments[-1] and arguments[-1].name)
        return judge(*arguments)

    monkeypatch.setattr(trainer, "judge_images", spy)
    return names


def run(folder, tracker):
    changes = {"run.rounds": 2, "run.tracker": tracker, "evaluation.every_rounds": 1, "evaluation.prompts": 4}
    changes |= {"evaluation.small_prompts": 2, "evaluation.pictures": "full", "sampling.steps": 2, "data.group_size": 8}
    tiny_runs.run_here(tiny_runs.arguments(folder, **changes))


def test_pictures_of_a_run_are_in_tensorboard(tmp_path, drawn):
    run(tmp_path, "tensorboard")
    assert drawn == ["round-00000", "newest", "round-00002"]
    (events,) = (tmp_path / "tiny" / "genrl").glob("events.*")
    board = EventAccumulator(str(events), size_guidance={IMAGES: 0})
    board.Reload()
    tags = board.Tags()
    strips = [tag for tag in tags["images"] if tag != "pictures/small evaluation"]
    assert len(strips) == 2 and all(tag.startswith("pictures/") for tag in strips), "the prompts that all evaluations have"
    assert all([event.step for event in board.Images(tag)] == [0, 2] for tag in strips), "before and after"
    (small,) = board.Images("pictures/small evaluation")
    assert small.step == 1
    picture = Image.open(io.BytesIO(small.encoded_image_string))
    assert picture.width > picture.height > 192, "two pictures side by side, words below"
    assert "policy/w2" in tags["scalars"] and not any("calibration" in tag for tag in tags["scalars"])
    assert any("critic/calibration/" in name for name in tiny_runs.metrics(tmp_path)[0])
    assert not (tmp_path / "tiny" / "evaluations" / "newest").exists(), "the last evaluation is kept"


def test_without_a_tracker_small_evaluations_draw_no_pictures(tmp_path, drawn):
    run(tmp_path, "none")
    assert drawn == ["round-00000", None, "round-00002"]
