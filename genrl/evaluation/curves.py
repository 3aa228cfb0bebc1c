"""A run against the reference curves of its config: where it leaves the band of healthy runs, and what that usually means.

The band is that of ``genrl.evaluation.bands``, for one new run at one point. A run goes through many points, so that some lie outside by
chance. Rules, *ours*: a metric of every round leaves the band when ``PATIENCE`` rounds in a row lie outside on the same side, or a single
one lies ``FAR`` half widths from the mean; one of held-out prompts with a single evaluation. Of simulated runs that differ by chance
alone, with three seeds as the reference, 1 in 17 leaves if it keeps its distance from the others through all rounds, none if rounds are
independent, 1 in 7 if it is a random walk.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from genrl.evaluation.bands import HELD_OUT, curves_of, differences, settings_of

PATIENCE = 3
FAR = 3.0
CHANCE = 0.05
NEEDED = ("name", "rounds", "seeds", "settings", "prompts", "curves")

Side = Literal["above", "below"]
HINTS: tuple[tuple[str, Side, str], ...] = (
    ("held_out/diversity/*", "below", "the pictures of a prompt grow alike: raise actor.beta or lower actor.lr"),
    ("held_out/diversity/*", "above", "the pictures of a prompt differ more: it has learned less, or they fall apart; look at them"),
    ("held_out/*", "below", "it learns less, or unlearns: with a low policy/w2 nothing moves, with a high one the policy has run away"),
    ("held_out/*", "above", "it learns more: good if all judges agree; if only the trained reward does, look for hacking in the report"),
    ("reward/*", "below", "training samples score less: check the reward's version, the prompts, and whether the actor learns at all"),
    ("reward/*", "above", "training samples score more: check that the reward is the same, and compare held_out of it"),
    ("policy/w2", "below", "the policy hardly moves: actor.lr too low, warm-up not over, or gradients clipped away"),
    ("policy/w2", "above", "the policy moves too far: raise actor.beta or lower actor.lr before pictures fall apart"),
    ("policy/kl", "below", "the policy hardly moves: actor.lr too low or actor.beta too high"),
    ("policy/kl", "above", "the policy moves too far: lower actor.lr or raise actor.beta"),
    ("policy/clipped", "above", "more is clipped: the clip range is too narrow, the lr too high, or number formats push ratios off 1"),
    ("policy/clipped", "below", "less is clipped: the policy moves less between updates"),
    ("policy/ratio_off_one", "above", "ratios stray from 1: lr too high, too many passes, or a format too coarse (genrl precision-report)"),
    ("policy/ratio_off_one", "below", "ratios stay at 1: the policy hardly moves"),
    ("policy/weight_std", "above", "samples weigh more unevenly: a few of them decide what is learned"),
    ("policy/weight_std", "below", "samples weigh alike: advantages say little, as when the critic is poor or rewards do not vary"),
    ("critic/*", "below", "the critic forecasts worse: it lags behind the policy (more passes) or its input is broken"),
    ("critic/*", "above", "the critic forecasts better: rewards have become easier to foresee, as when samples grow alike"),
    ("mix/valid", "below", "more samples could not be scored: look for errors of the reward"),
    ("mix/valid", "above", "more samples could be scored than in the reference"),
    ("student/std_over_teacher", "above", "the student's contrast runs away: lower the actor's lr or give the fake more passes"),
    ("student/std_over_teacher", "below", "the student grows flat: lower the actor's lr or give the fake more passes"),
    ("student/*", "above", "the student strays from its teacher: look at colours and brightness"),
    ("student/*", "below", "the student strays from its teacher: look at colours and brightness"),
    ("discriminator/*", "above", "the discriminator wins: lower its lr or its passes"),
    ("discriminator/*", "below", "the discriminator cannot tell: its gradient is noise; raise its lr or its passes"),
    ("preference/*", "above", "the latent reward tells candidates apart more than usual: the student may be exploiting it"),
    ("preference/*", "below", "the latent reward hardly tells candidates apart: there is nothing to prefer"),
    ("preview/*", "above", "previews rank like full pictures more than usual"),
    ("preview/*", "below", "previews no longer rank like full pictures: give them more steps"),
)
"""What leaving the band usually means: metric, side, words; the first that fits counts."""


@dataclass(frozen=True)
class Course:
    """One metric of a run against its band. ``leaves`` is the round where it goes out to ``side``, None if it stays; ``worst`` the largest
    distance from the mean in half widths of the band (beyond 1 is outside), ``worst_round`` where and ``worst_side`` to which side."""

    metric: str
    points: int
    leaves: int | None
    side: Side
    worst: float
    worst_round: int
    worst_side: Side


@dataclass(frozen=True)
class Comparison:
    """A run against a reference: ``courses`` by metric, ``differences`` of settings in words, ``missing`` metrics that the run lacks."""

    run: str
    reference: str
    rounds: int  # the last that both have
    reference_rounds: int
    seeds: tuple[int, ...]
    courses: tuple[Course, ...]
    differences: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def inside(self) -> bool:
        return all(course.leaves is None for course in self.courses)

    @property
    def sentence(self) -> str:
        """``inside everywhere``, or where the run leaves first."""
        out = [course for course in self.courses if course.leaves is not None]
        if not out:
            return "inside everywhere"
        first = min(out, key=lambda course: (course.leaves or 0, -course.worst))
        side = "" if first.worst_side == first.side else f" {first.worst_side}"
        return f"leaves the band at round {first.leaves}: {first.metric} {first.side} ({first.worst:.1f} half widths{side})"


def compare_run(run: Path, reference: str | Path) -> Comparison:
    """Compare a run, finished or not, at the rounds that both have.

    Args:
        reference: name of a shipped curve, or a JSON file that ``benchmarks/reference_curves.py`` wrote.

    Raises:
        FileNotFoundError: no such reference (near names are told), or a run without metrics.jsonl.
        ValueError: the file is no reference curve, or has no metric at a round of the run.
    """
    content = load_reference(reference)
    curves = curves_of(run, [(text, number) for text, number in content["prompts"]])
    courses, missing = [], []
    for metric, points in content["curves"].items():
        course = follow(metric, curves.get(metric, {}), points)
        courses += [course] if course else []
        missing += [] if course else [metric]
    if not courses:
        last = max((round_ for points in curves.values() for round_ in points), default=0)
        raise ValueError(f"{run} (up to round {last}) has no metric at a round of the reference {content['name']!r}")
    own = settings_of(run)
    differ = differences(own, content["settings"]) if own else ["config.yaml is missing, so that settings were not compared"]
    both = max(max(set(curves[course.metric]).intersection(content["curves"][course.metric]["round"])) for course in courses)
    seeds = tuple(content["seeds"])
    return Comparison(str(run), content["name"], both, content["rounds"], seeds, tuple(courses), tuple(differ), tuple(missing))


def follow(metric: str, values: Mapping[int, float], points: Mapping[str, list[float]]) -> Course | None:
    """One curve, round -> value, against a band of ``round``, ``mean``, ``low``, ``high``; None if they have no round in common."""
    patience = 1 if metric.startswith(HELD_OUT) else PATIENCE
    excursions = {}  # round -> signed distance from the mean in half widths
    for at, mean, low, high in zip(points["round"], points["mean"], points["low"], points["high"], strict=True):
        round_ = int(at)
        if round_ in values:
            away = values[round_] - mean
            excursions[round_] = away / max(high - mean if away > 0 else mean - low, 1e-12)
    if not excursions:
        return None
    worst = max(excursions, key=lambda r: abs(excursions[r]))
    leaves = _leaves(excursions, patience)
    side = _side(excursions[worst if leaves is None else leaves])
    return Course(metric, len(excursions), leaves, side, abs(excursions[worst]), worst, _side(excursions[worst]))


def _leaves(excursions: Mapping[int, float], patience: int) -> int | None:
    """The round of the first point far outside, or that begins the first ``patience`` points in a row outside on one side."""
    row: list[int] = []
    before = 0
    for round_, distance in excursions.items():
        out = int(distance > 1) - int(distance < -1)
        row = [*(row if out == before else []), round_] if out else []
        before = out
        if len(row) >= patience or abs(distance) > FAR:
            return row[0]
    return None


def hint(metric: str, side: Side) -> str:
    """What leaving to that side usually means."""
    return next((words for pattern, where, words in HINTS if where == side and fnmatch(metric, pattern)), "")


def words(comparison: Comparison) -> str:
    """The comparison as text for a terminal; its last line is the verdict."""
    seeds = ", ".join(map(str, comparison.seeds))
    lines = [
        f"{comparison.run} against the reference {comparison.reference!r} (seeds {seeds}; {comparison.reference_rounds} rounds), "
        f"up to round {comparison.rounds}",
        *(f"warning: other settings: {line}" for line in comparison.differences),
    ]
    if comparison.missing:
        lines.append(f"not compared, as the run has no value at these rounds: {', '.join(comparison.missing)}")
    width = max(len(course.metric) for course in comparison.courses)
    lines += ["", f"{'metric':{width}}  points  worst, in half widths of the band"]
    for course in comparison.courses:
        worst = f"{course.worst:.1f} {course.worst_side} at round {course.worst_round}"
        verdict = f"leaves at round {course.leaves}, {course.side}" if course.leaves is not None else "inside"
        passing = ", but for single rounds" if course.leaves is None and course.worst > 1 else ""
        lines.append(f"{course.metric:{width}}  {course.points:6}  {worst:24} {verdict}{passing}")
    out = sorted((course for course in comparison.courses if course.leaves is not None), key=lambda course: course.leaves or 0)
    if out:
        lines += ["", "What this usually means:"]
        lines += [f"  {course.metric} {course.side}: {hint(course.metric, course.side) or 'nothing is known'}" for course in out]
        by_chance = CHANCE * len(comparison.courses)
        lines.append(f"Of {len(comparison.courses)} metrics of a healthy run, about {by_chance:.1f} leave a 95 % band by chance.")
    return "\n".join([*lines, "", comparison.sentence])


def load_reference(reference: str | Path) -> dict[str, Any]:
    """A reference curve by name or file; what it must hold is looked at.

    Raises:
        FileNotFoundError, ValueError: as ``compare_run``.
    """
    folder = Path(str(resources.files("genrl.evaluation"))) / "references"
    file = Path(reference)
    if not file.is_file():
        file = folder / f"{str(reference).removesuffix('.json')}.json"
    if not file.is_file():
        names = sorted(path.stem for path in folder.glob("*.json"))
        near = difflib.get_close_matches(str(reference), names, n=3, cutoff=0.4) or names
        known = f"did you mean {', '.join(near)}?" if near else "none ships; benchmarks/reference_curves.py makes one from runs of your own"
        raise FileNotFoundError(f"no reference curve {str(reference)!r}, neither a name nor a file; {known}")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    lacking = [key for key in NEEDED if key not in content] if isinstance(content, dict) else list(NEEDED)
    if lacking:
        raise ValueError(f"{file} is no reference curve: it lacks {', '.join(lacking)}; benchmarks/reference_curves.py writes them")
    kinds = {"name": str, "rounds": int, "seeds": list, "settings": dict, "prompts": list, "curves": dict}
    broken = [key for key, kind in kinds.items() if not isinstance(content[key], kind)]
    broken = broken or [metric for metric, points in content["curves"].items() if not _is_band(points)]
    if broken or not all(isinstance(key, list) and len(key) == 2 for key in content["prompts"]):
        raise ValueError(f"{file} is no reference curve: what it has as {', '.join(broken) or 'prompts'} cannot be read")
    return content


def _is_band(points: Any) -> bool:
    """Whether these are ``round``, ``mean``, ``low`` and ``high``, equally many finite numbers each."""
    if not isinstance(points, dict):
        return False
    columns = [column for name in ("round", "mean", "low", "high") if isinstance(column := points.get(name), list)]
    if len(columns) < 4 or len({len(column) for column in columns}) > 1:
        return False
    return all(isinstance(value, (int, float)) and math.isfinite(value) for column in columns for value in column)


def _side(distance: float) -> Side:
    return "above" if distance > 0 else "below"
