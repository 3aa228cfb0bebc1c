"""Pictures on sheets, and what a recorder shows to which tracker."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genrl.evaluation.sheets import COLUMNS, IMAGES, LINE, SIDE, overview, spread, strips
from genrl.evaluation.watch import Watch
from genrl.recorder import NEWEST, UNTRACKED, Recorder


def rows_in(folder: Path, prompts=("a/b", "two", "two"), images=2, side=8, missing=()):
    """Rows of an evaluation with pictures of one colour each: red tells the prompt, green the image."""
    folder.mkdir(parents=True)
    rows = []
    for place, prompt in enumerate(prompts):
        scores = {"judge": [0.25 * k for k in range(images)], "clip": [float("nan")] * images}
        rows.append({"place": place, "prompt": {"prompt": prompt, "category": ""}, "scores": scores})
        for k in range(images if place not in missing else 0):
            Image.new("RGB", (side, side), (50 + place * 40, min(90 * k, 255), 7)).save(folder / f"{place:05d}-{k}.png")
    return rows


@pytest.mark.parametrize(("total", "count", "expected"), [(5, 9, [0, 1, 2, 3, 4]), (10, 4, [0, 3, 6, 9]), (7, 1, [0]), (3, 0, [])])
def test_spread(total, count, expected):
    assert spread(total, count) == expected


def test_a_strip_per_prompt(tmp_path):
    found = strips(rows_in(tmp_path / "p", images=IMAGES + 1, side=256, missing=(1,)), tmp_path / "p")
    assert list(found) == ["a b", "two"], "no slash makes a group, and no strip without pictures"
    sheet = found["two"]
    assert sheet.dtype == np.uint8 and sheet.shape[0] == 1 and sheet.shape[3] == 3
    assert sheet.shape[2] // SIDE == IMAGES and SIDE + 2 * LINE <= sheet.shape[1] < SIDE + 3 * LINE
    middle = [sheet[0, SIDE // 2, k * sheet.shape[2] // IMAGES + SIDE // 2].tolist() for k in range(IMAGES)]
    assert middle == [[130, min(90 * k, 255), 7] for k in range(IMAGES)], "in their order"
    below = sheet[0, SIDE + 3 : SIDE + 3 + 2 * LINE]
    assert (below < 128).any() and (below == 255).mean() > 0.5, "there are words, on white"


def test_prompts_that_repeat_have_strips_of_their_own(tmp_path):
    assert list(strips(rows_in(tmp_path / "p"), tmp_path / "p")) == ["a b", "two", "two (2)"]


def test_one_sheet_of_all(tmp_path):
    prompts = [f"prompt number {i} " + "with many words " * 20 for i in range(COLUMNS + 1)]
    sheet = overview(rows_in(tmp_path / "p", prompts), tmp_path / "p")
    assert sheet is not None
    rows, columns = sheet.shape[1] // 2, sheet.shape[2] // COLUMNS
    assert sheet[0, 10, 3 * columns + 10].tolist() == [170, 0, 7] and sheet[0, rows + 10, 10].tolist() == [210, 0, 7]
    assert (sheet[0, rows:, columns:] == 255).all(), "nothing beside the last"
    assert overview([], tmp_path) is None


class Tracker:
    def __init__(self, name):
        self.name, self.seen = name, []

    def log_images(self, values, step, **options):
        self.seen.append((list(values), step, options))


def recorder(folder, *trackers, track=lambda *_, **__: None):
    found = Recorder(folder, True, track, Watch([], []), trackers=trackers)
    found.open(0, True, {})
    return found


def test_trackers_are_shown_what_is_kept_by_prompt_and_what_is_not_on_one_sheet(tmp_path):
    board, other = Tracker("tensorboard"), Tracker("wandb")
    book = recorder(tmp_path, board, other, object())
    passing, kept = book.pictures("round-00010", kept=False), book.pictures("round-00020", kept=True)
    assert (passing, kept) == (tmp_path / "evaluations" / NEWEST, tmp_path / "evaluations" / "round-00020")
    book.show("pictures", 10, rows_in(passing), passing)
    assert passing.is_dir()
    book.show("pictures", 20, rows_in(kept), kept)
    assert kept.is_dir() and not passing.exists(), "what is not kept goes when there is something newer"
    expected = [(["pictures/small evaluation"], 10), (["pictures/a b", "pictures/two", "pictures/two (2)"], 20)]
    assert [(tags, step) for tags, step, _ in board.seen] == [(tags, step) for tags, step, _ in other.seen] == expected
    assert {str(options) for *_, options in board.seen} == {"{'dataformats': 'NHWC'}"} and not any(o for *_, o in other.seen)


def test_without_a_tracker_nothing_is_drawn(tmp_path, monkeypatch):
    book = recorder(tmp_path)
    book.show("pictures", 10, [], None)
    monkeypatch.setattr("genrl.evaluation.sheets.strips", lambda *_: pytest.fail("drew"))
    kept = book.pictures("round-00020", kept=True)
    book.show("pictures", 20, rows_in(kept), kept)


def test_trackers_do_not_get_the_calibration(tmp_path):
    told = []
    name = f"{UNTRACKED}0.4-0.6/actual/0"
    recorder(tmp_path, track=lambda values, step: told.append((values, step))).log({"round": 3, "policy/w2": 0.1, name: 0.5}, 1.0)
    assert told == [({"policy/w2": 0.1}, 3)]
    assert name in (tmp_path / "metrics.jsonl").read_text()
