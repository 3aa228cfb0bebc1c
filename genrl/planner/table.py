"""A plan in words and tables."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from genrl.planner import Part, Plan, Stage
from genrl.planner.rehearsal import BEFORE, STATES

GIB = 2**30
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
    table = Table(title="A round, stage by stage, predicted", title_justify="left")
    for name in ("stage", "samples", "pieces", "peak GiB", "kept for backward GiB", "TFLOP a round", "seconds a round"):
        table.add_column(name, justify="left" if name == "stage" else "right")
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
    """What would lower the highest peaks, with the bytes that it is predicted to save."""
    too_high = [stage for stage in plan.stages if stage.peak > NEARLY * plan.capacity]
    found = [*_of_stages(plan, too_high), *_of_parts(plan)] if too_high else []
    return list(dict.fromkeys(found))


def _of_stages(plan: Plan, stages: list[Stage]) -> list[str]:
    found = []
    for stage in stages:
        above = stage.peak - plan.resident
        if stage.update is not None and stage.rows > 1:
            found.append(
                f"a minibatch of {stage.rows // 2} for {stage.name}, with twice the accumulate, saves about {_gib(above // 2)} GiB"
            )
            if stage.kept > 0.5 * above:
                found.append(
                    f"model.gradient_checkpointing saves most of the {_gib(stage.kept)} GiB that {stage.name} keeps for its backward pass"
                )
        elif stage.name == "decoding":
            found.append(f"speed.vae slicing, or a sampling.chunk below {stage.rows}, saves most of the {_gib(above)} GiB of decoding")
        elif stage.pieces:
            found.append(f"a sampling.chunk of {max(stage.rows // 2, 1)} saves about {_gib(above // 2)} GiB of {stage.name}")
        elif any(part.place == BEFORE for part in plan.parts):
            found.append("text embeddings from an earlier run (speed.embeddings), or model.t5 false, save the text encoders' memory")
    return found


def _of_parts(plan: Plan) -> list[str]:
    def named(part: Part, start: str) -> bool:
        return part.name.startswith(start) and part.bytes > 0.02 * plan.resident

    found = []
    for stage in plan.stages:
        states = sum(part.bytes for part in plan.parts if named(part, f"{STATES}{stage.name}"))
        # more than 4 bytes a weight are 32-bit states
        if states > 4 * stage.weights:
            found.append(f"optimizer adamw8bit saves {_gib(states * 3 // 4)} GiB of the states of {stage.name}")
    for role in ("old", "ref", "average"):
        weights = sum(
            part.bytes for part in plan.parts if part.name == role and part.place == "device" and part.bytes > 0.02 * plan.resident
        )
        if weights and not any(part.name == "shared base" for part in plan.parts):
            found.append(f"speed.offload [{role}] saves {_gib(weights)} GiB except while it is used")
    return found


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= 0.1 * GIB else f"{size / GIB:.4f}"
