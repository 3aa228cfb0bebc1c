"""A plan in words and tables."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from genrl.planner import Plan, Stage
from genrl.planner.rehearsal import BEFORE, SHARED, STATES
from genrl.policy import AVERAGE, OLD, REF

GIB = 2**30
LEGEND = "samples of a piece; kept from forward to backward; TFLOP and seconds of a whole round"
NEARLY = 0.95
"""Share of a device's memory above which a run is said not to fit: what is left is CUDA's own, and lost between blocks."""


def show(plan: Plan, console: Console | None = None) -> None:
    """Print a plan."""
    (console or Console()).print(words(plan))


def words(plan: Plan) -> Group:
    """The plan as something that rich prints."""
    return Group(_stays(plan), _stages(plan), *(Text(line) for line in sentences(plan)))


def _stays(plan: Plan) -> Table:
    table = Table(title="Memory that stays, predicted", title_justify="left")
    for name, justify in (("what", "left"), ("where", "left"), ("GiB", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    places = {"device": "device", "cpu": "CPU, visits", BEFORE: "device, before the first round"}
    for part in sorted(plan.parts, key=lambda part: (list(places).index(part.place), -part.bytes)):
        if part.bytes >= 0.0005 * max(plan.resident, 1):
            table.add_row(part.name, places[part.place], _gib(part.bytes))
    table.add_section()
    table.add_row("in all, through a round", "device", _gib(plan.resident))
    return table


def _stages(plan: Plan) -> Table:
    table = Table(title="A round, stage by stage, predicted", caption=LEGEND, title_justify="left", caption_justify="left")
    for name in ("stage", "samples", "pieces", "peak GiB", "kept GiB", "TFLOP", "seconds"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=name == "stage")
    for stage in plan.stages:
        seconds = f"{plan.times.of(stage):.2f}" if plan.times and stage.pieces else "-"
        operations = (stage.plain + stage.learning) * stage.pieces / stage.every
        table.add_row(
            stage.name if stage.every == 1 else f"{stage.name}, every {stage.every} rounds",
            str(stage.rows or "-"),
            f"{stage.pieces:g}" if stage.pieces else "-",
            _gib(stage.peak),
            _gib(stage.kept) if stage.kept else "-",
            f"{operations / 1e12:.3g}" if operations else "-",
            seconds,
        )
    return table


def sentences(plan: Plan) -> list[str]:
    """The outcome: the peak, the seconds, and what to change where it does not fit."""
    peak, capacity = plan.peak, plan.capacity
    of = f" of {_gib(capacity)}" if capacity else ""
    found = [f"predicted for {plan.device}: at most {_gib(peak.peak)} GiB{of}, while {peak.name}"]
    if plan.seconds is None:
        found.append(f"seconds are not predicted: {plan.untimed or 'nothing was timed'}")
    else:
        found.append(f"predicted {plan.seconds:.1f} seconds a round, once every update has begun; rewards and evaluations come on top")
    if capacity and peak.peak > NEARLY * capacity:
        found.append(f"this does not fit. {'; '.join(hints(plan)) or 'a smaller model or picture would'}")
    return found


def hints(plan: Plan) -> list[str]:
    """What would lower the peaks that are too high, with the GiB that it is predicted to save."""
    too_high = [stage for stage in plan.stages if stage.peak > NEARLY * plan.capacity]
    found = [hint for stage in too_high for hint in _of_stage(plan, stage)]
    return list(dict.fromkeys([*found, *(_of_parts(plan) if too_high else [])]))


def _of_stage(plan: Plan, stage: Stage) -> list[str]:
    """What makes one stage smaller."""
    above, found = stage.peak - plan.resident, []
    if stage.update is not None:
        if stage.rows > 1:
            found.append(f"half the minibatch of {stage.name}, with twice its accumulate, saves about {_gib(above / 2)} GiB")
        if stage.kept > 0.5 * above:
            found.append(f"model.gradient_checkpointing saves most of the {_gib(stage.kept)} GiB that {stage.name} keeps for backward")
    elif stage.name == "decoding":
        found.append(f"speed.vae slicing, or a sampling.chunk below {stage.rows}, saves most of the {_gib(above)} GiB of decoding")
    elif stage.pieces and stage.rows > 1:
        found.append(f"half of sampling.chunk saves about {_gib(above / 2)} GiB of {stage.name}")
    elif not stage.pieces:
        found.append("model.t5 false, or embeddings from an earlier run (speed.embeddings), save the memory of text encoders")
    return found


def _of_parts(plan: Plan) -> list[str]:
    """What makes smaller what stays, where it is worth it."""
    large = {part.name: part.bytes for part in plan.parts if part.place == "device" and part.bytes > 0.02 * plan.resident}
    found = []
    for stage in plan.stages:
        states = large.get(f"{STATES}{stage.name}", 0)
        # more than 4 bytes a weight are 32-bit states
        if states > 4 * stage.weights:
            found.append(f"optimizer adamw8bit saves {_gib(states * 3 / 4)} GiB of the states of {stage.name}")
    if SHARED not in large:
        frozen = [role for role in (OLD, REF, AVERAGE) if role in large]
        found += [f"speed.offload [{role}] saves {_gib(large[role])} GiB, except while {role} is used" for role in frozen]
    return found


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= 0.1 * GIB else f"{size / GIB:.4f}"
