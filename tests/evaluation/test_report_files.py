"""What a report is made of: files that may be missing, broken, or half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_pages import make_run, page_of, text_of

from genrl.evaluation.report import write_report


def test_optional_files_may_be_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    for name in ("config.yaml", "versions.json", "metrics.jsonl"):
        (run / name).unlink()
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"per_category": {}, "w2": None, "diversity_before": None, "diversity_after": None, "diversity_metric": None}
    (run / "summary.json").write_text(json.dumps(summary))
    text = text_of(page_of(run))
    for word in (
        "kept no pictures",
        "no metrics.jsonl",
        "no versions.json",
        "no config.yaml",
        "carry no categories",
        "Diversity was not measured",
    ):
        assert word in text
    assert "nan" not in text.lower()


def test_what_a_report_cannot_do_without(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    last = run / "evaluations/round-00080.json"
    raw = json.loads(last.read_text())
    last.write_text(json.dumps(raw | {"seed": 12}))
    with pytest.raises(ValueError, match="not paired: seed 11 and 12"):
        write_report(run)
    last.write_text(json.dumps(raw))
    (run / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"summary\.json"):
        write_report(run)
    last.unlink()
    (run / "evaluations/round-00040.json").unlink()
    with pytest.raises(FileNotFoundError, match="at least two"):
        write_report(run)


def test_half_a_line_is_left_out_and_broken_files_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=False)
    whole = page_of(run)
    for name in ("metrics.jsonl", "alarms.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"round": 81, "wor')
    assert page_of(run) == whole
    for name, content, words in (
        ("versions.json", "[1", "is no object in JSON"),
        ("summary.json", '{"judge": "exact"}', "lacks proxy, judge_before"),
        ("summary.json", "5", "is no object in JSON"),
        ("evaluations/round-00080.json", '{"round": 80}', "holds no evaluation of a run"),
    ):
        kept = (run / name).read_text()
        (run / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name}.* {words}"):
            write_report(run)
        (run / name).write_text(kept)


def test_the_report_of_a_run_is_reproducible(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert page_of(run) == page_of(run)
