"""The view of a run while it goes on: what a frame says, at every moment of a run, and when it ends."""

import io
import json
import os
import time

import numpy as np
import pytest
from made_up_runs import EVERY, PROMPTS, ROUNDS, draw, evaluation_record, make_run
from PIL import Image
from rich.console import Console

from genrl.evaluation import live
from genrl.evaluation.live import BARS, EDGE, finished, frame, half_blocks, sparkline, watch


def shown(run, width=110, colors=None):
    console = Console(file=io.StringIO(), width=width, color_system=colors, force_terminal=colors is not None)
    console.print(frame(run, width))
    return console.file.getvalue()


def test_a_frame_says_where_a_run_is(tmp_path):
    run = make_run(tmp_path / "run", rounds=20, finished=False)
    (run / "alarms.jsonl").write_text(json.dumps({"round": 7, "words": "W2 is [high]: raise beta"}) + "\n")
    text = shown(run)
    assert "ac_flow of shapes" in text
    assert f"round 20 / {ROUNDS}, 40 s of rounds, about 20 s left, 2\u202f560 images" in text
    assert "round 7: W2 is [high]: raise beta" in text
    assert f"round 20 against 0, {PROMPTS // 2} held-out prompts, 95 % interval:" in text
    (proxy,) = [line for line in text.splitlines() if "proxy (trained)" in line]
    assert "+.2" in proxy and "[+." in proxy
    lines = {line.split()[1]: line.split()[2:-1] for line in text.splitlines() if set(BARS) & set(line)}
    assert list(lines)[:3] == ["held_out/diversity/layout", "held_out/judge", "held_out/proxy"], "what is judged comes first"
    assert f"held_out: over the {PROMPTS // 2} prompts that all evaluations have" in text
    assert {"reward/proxy/mean", "policy/w2", "critic/explained_variance"} <= lines.keys() and not any("calibration" in n for n in lines)
    bars, first, last = lines["policy/w2"]
    assert bars[0] == BARS[0] and bars[-1] == BARS[-1] and float(last) > float(first)
    assert "pictures of round 0" in text and "is it still running" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_frame_fits_its_width(tmp_path, width):
    run = make_run(tmp_path / "run")
    assert max(len(line) for line in shown(run, width).splitlines()) <= width
    assert "finished" in shown(run, width)


def test_every_moment_of_a_run_has_a_frame(tmp_path):
    run = tmp_path / "run"
    assert "is not there yet" in shown(run)
    run.mkdir()
    assert "holds no config.yaml, and so no run: no round is over yet" in " ".join(shown(run, 200).split())
    whole = make_run(tmp_path / "whole", finished=False)
    (run / "config.yaml").write_text("run: {rounds: 30, se")
    assert "training of a model" in shown(run)
    (run / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    (run / "versions.json").write_text('{"command": "/x/trainers/flo')
    assert f"no round of {ROUNDS} is over yet" in shown(run)
    (run / "evaluations").mkdir()
    (run / "evaluations" / "round-00000.json").write_text((whole / "evaluations" / "round-00000.json").read_text()[:500])
    assert "before training" not in shown(run), "half an evaluation is none"
    (run / "evaluations" / "round-00000.json").write_bytes((whole / "evaluations" / "round-00000.json").read_bytes())
    assert f"before training, {PROMPTS} held-out prompts: proxy ." in shown(run)
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]) + lines[4][:30])
    assert "no round of" in shown(run), "no time is known yet"
    (run / "timing.jsonl").write_text("".join((whole / "timing.jsonl").read_text().splitlines(keepends=True)[:4]) + '{"round": 5, "sec')
    assert f"round 4 / {ROUNDS}, 8 s of rounds" in shown(run)


def test_a_run_that_went_quiet_is_told(tmp_path):
    run = make_run(tmp_path / "run", rounds=20, finished=False)
    long_ago = time.time() - 3 * 3600
    os.utime(run / "metrics.jsonl", (long_ago, long_ago))
    assert "nothing was written for 3 h" in shown(run)
    os.utime(make_run(tmp_path / "done") / "metrics.jsonl", (long_ago, long_ago))
    assert "nothing was written" not in shown(tmp_path / "done")


def test_evaluations_without_a_common_prompt_are_no_comparison(tmp_path):
    run = make_run(tmp_path / "run", rounds=10, finished=False)
    record = evaluation_record(0, EVERY, range(4)) | {"prompts": [{"prompt": f"other {i}", "category": ""} for i in range(4)]}
    (run / "evaluations" / "round-00010.json").write_text(json.dumps(record))
    assert "prompts that have none in common" in shown(run)


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [([0, 1, 2, 3], 4, "▁▃▆█"), ([0, 0, 4, 4], 2, "▁█"), ([2, 2], 9, "▅▅"), ([float("nan"), 1, 0], 9, "█▁"), ([float("nan")], 9, "")],
)
def test_sparklines(values, columns, expected):
    assert sparkline(values, columns) == expected


# -- pictures


def test_pictures_are_half_blocks_of_two_pixels(tmp_path):
    picture = Image.new("RGB", (2 * EDGE, EDGE), (10, 20, 30))
    picture.paste((200, 100, 50), (0, 0, EDGE, EDGE))
    picture.save(tmp_path / "wide.png")
    text = half_blocks(tmp_path / "wide.png")
    assert [len(line) for line in text.plain.splitlines()] == [EDGE] * round(EDGE / 4)
    assert text.spans[0].style.color.triplet == text.spans[0].style.bgcolor.triplet == (200, 100, 50)
    assert text.spans[EDGE - 1].style.color.triplet == (10, 20, 30)
    Image.fromarray(np.uint8([[[255, 0, 0]] * 2, [[0, 0, 255]] * 2])).save(tmp_path / "two.png")
    style = half_blocks(tmp_path / "two.png").spans[0].style
    assert (style.color.triplet, style.bgcolor.triplet) == ((255, 0, 0), (255, 0, 0)), "enlarged to whole lines"
    (tmp_path / "half.png").write_bytes((tmp_path / "wide.png").read_bytes()[:60])
    assert half_blocks(tmp_path / "half.png") is None and half_blocks(tmp_path / "none.png") is None


def test_the_newest_pictures_are_drawn_where_there_are_colours(tmp_path):
    run = make_run(tmp_path / "run", rounds=20, finished=False)
    colored = shown(run, colors="truecolor")
    assert "▀" in colored and "38;2;200;0;0" in colored and "48;2;0;0;220" in colored and "prompt 3" in colored
    assert "▀" in shown(run, colors="256") and "▀" not in shown(run, colors="standard") and "▀" not in shown(run)
    draw(run, "newest", 90)
    colored = shown(run, colors="truecolor")
    assert "pictures of round 20" in colored and "38;2;200;90;0" in colored and "38;2;200;0;0" not in colored
    (run / "evaluations" / "newest" / "00000-0.png").write_bytes(b"\x89PNG")
    assert "▀" in shown(run, colors="truecolor"), "one that is being written is left out"


# -- the loop


def test_once_prints_a_frame_and_ends(tmp_path):
    console = Console(file=io.StringIO(), width=100)
    watch(make_run(tmp_path / "run", rounds=10, finished=False), once=True, console=console)
    assert console.file.getvalue().count("round 10 /") == 1


def test_it_ends_when_the_run_has(tmp_path, monkeypatch):
    run, waits = make_run(tmp_path / "run", finished=False), []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            (run / "summary.json").write_text(json.dumps({"rounds": ROUNDS}))

    monkeypatch.setattr(live.time, "sleep", wait)
    console = Console(file=io.StringIO(), width=100)
    watch(run, every_s=0.5, console=console)
    assert waits == [0.5] * 3 and "finished" in console.file.getvalue()


def test_an_interrupt_ends_it_without_a_word(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(live.time, "sleep", interrupt)
    watch(make_run(tmp_path / "run", finished=False), console=Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="take a number above 0"):
        watch(tmp_path, every_s=0)


def test_the_summary_of_a_run_that_goes_on_is_no_end(tmp_path):
    run = make_run(tmp_path / "run", rounds=20)
    assert not finished(run), "its config asks for more by now"
    (run / "summary.json").write_text("{")
    assert not finished(run)
    assert finished(make_run(tmp_path / "done"))


def test_a_run_that_judges_nothing_ends_with_its_last_round(tmp_path):
    for rounds, expected in ((20, False), (ROUNDS, True)):
        run = make_run(tmp_path / str(rounds), rounds=rounds, finished=False)
        assert not finished(run)
        for path in (run / "evaluations").glob("*.json"):
            path.unlink()
        assert finished(run) is expected


def test_what_is_no_run_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name the folder of a run"):
        watch(tmp_path / "file", once=True)


def test_odd_lines_and_settings_leave_a_frame(tmp_path):
    run = make_run(tmp_path / "run", rounds=20, finished=False)
    (run / "metrics.jsonl").write_text('{"round": 1, "policy/w2": NaN}\n5\n\n{"round": 2, "policy/w2": 0.25, "mix/valid": "x"}\n')
    (run / "alarms.jsonl").write_text('{"words": "of no round"}\n')
    (run / "evaluations" / "round-00030.json").write_text("{}")
    text = shown(run)
    assert "round 2 /" in text and "nan" not in text and "of no round" not in text and "round 20 against 0" in text
    (run / "config.yaml").write_text("run: null\nmodel: [1]\n")
    (run / "summary.json").write_text("[1]")
    assert "ac_flow of a model" in shown(run) and not finished(run)
