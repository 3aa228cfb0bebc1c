"""Settings: dataclasses are the schema, a YAML file holds the differences, ``--dotted.name value`` overrides; by jsonargparse."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml

from genrl.precision import Precision

C = TypeVar("C")


class ConfigError(ValueError):
    """Settings that make no sense; the message names the key."""


@dataclass(frozen=True)
class Run:
    """Where a run lives and how long it goes on.

    Args:
        name: results go to <folder>/<name>.
        folder: parent of all runs.
        rounds: rounds in all; a round samples, scores and learns once.
        seed: the one seed everything random is derived from.
        save_every_rounds: checkpoint interval.
        keep: checkpoints kept.
        resume: go on from the newest checkpoint of the same name; false starts over and deletes it.
        tracker: where metrics also go; tensorboard needs no account.
        device: cpu, cuda, or auto for what accelerate finds.
    """

    name: str = "run"
    folder: str = "runs"
    rounds: int = 100
    seed: int = 0
    save_every_rounds: int = 20
    keep: int = 2
    resume: bool = True
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters.

    Args:
        rank: rank of the update.
        alpha: scale of the update; its strength is alpha / rank.
        targets: names of the adapted linear layers.
    """

    rank: int = 32
    alpha: int = 64
    targets: list[str] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    )


@dataclass(frozen=True)
class Model:
    """Which generator, and what of it is trained.

    Args:
        source: diffusers folder, hub id, or "shapes" or "shapes_sdxl" for the embedded world.
        revision: revision on the hub.
        tune: full copies, or LoRA adapters over one shared base.
        precision: number formats, by place; weights in 16 bits only where tune is lora.
        height: pixels; 0 is the model's own.
        width: pixels; 0 is the model's own.
        t5: use T5 if the model has it.
        max_sequence_length: T5 tokens, or zeros in its place.
        gradient_checkpointing: trade time for memory.
    """

    source: str = "shapes"
    revision: str | None = None
    tune: Literal["full", "lora"] = "lora"
    lora: Lora = field(default_factory=Lora)
    precision: Precision = field(default_factory=Precision)
    height: int = 0
    width: int = 0
    t5: bool = True
    max_sequence_length: int = 256
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn, in training and in evaluation.

    Args:
        steps: Euler steps.
        guidance: classifier-free guidance; 1 is none.
        chunk: samples per forward pass.
    """

    steps: int = 10
    guidance: float = 1.0
    chunk: int = 64


@dataclass(frozen=True)
class Data:
    """Prompts.

    Args:
        train: prompt file or built-in set to learn on.
        held_out: prompt file or built-in set to judge on.
        prompts: prompts a round, over all processes.
        group_size: samples per prompt.
        repeat: how often prompts of a category are in an epoch, 1 if not named: more of what is hard, less of what always succeeds.
    """

    train: str = "shapes/train"
    held_out: str = "shapes/held_out"
    prompts: int = 8
    group_size: int = 16
    repeat: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """A reward.

    Args:
        name: built-in name, entry point, package.module:Name or path/to/file.py:Name.
        label: what it is called in logs and reports; its name if empty.
        weight: its factor in the trained sum; 0 leaves it out.
        options: passed to the reward.
        where: here; process, one of its own, restarted if it dies; or environment, a process in a virtual environment of its own.
        requirements: what pip installs into that environment, on top of what is installed here.
        witness: as a judge, the hacking alarm listens to it; false keeps a judge for the end, untouched by any decision.
        mean: subtracted from scores where rewards.mix.normalise is fixed.
        std: what they are then divided by.
        floor: least score, unnormalised, for the rules gated and constrained; null is for constrained the mean of the first round.
    """

    name: str = "shapes_judge"
    label: str = ""
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    where: Literal["here", "process", "environment"] = "here"
    requirements: list[str] = field(default_factory=list)
    witness: bool = True
    mean: float = 0.0
    std: float = 1.0
    floor: float | None = None


Ensemble = Literal["mean", "worst", "uncertain", "lower_bound", "nominal_worst", "entropic"]
Rule = Literal["weighted_sum", Ensemble, "product", "gated", "gdpo", "constrained"]


@dataclass(frozen=True)
class Mix:
    """How several rewards become one; formulas in genrl/rules.py.

    Args:
        rule: for one target's ensemble mean to entropic, for different aims weighted_sum or product to constrained.
        normalise: by the mean and std given (fixed), within a prompt's samples (group), of all rounds so far and this one (running) or
            of the first round (base); null is fixed for weighted_sum, product and gated, group for gdpo, base for all others.
        coefficient: of uncertain (null: .1), nominal_worst (.5), lower_bound and entropic (1), product (.001), constrained (.9).
        penalty: reward of a sample below a floor of gated; null is the lowest main reward of the round.
        dual_lr: step of the multipliers of constrained, per round and standard deviation below a floor.
    """

    rule: Rule = "weighted_sum"
    normalise: Literal["none", "fixed", "group", "running", "base"] | None = None
    coefficient: float | None = None
    penalty: float | None = None
    dual_lr: float = 0.05


@dataclass(frozen=True)
class Judges:
    """Rewards that only judge.

    Args:
        judges: rewards that only judge; the first is the judge of reports.
        batch: images per call.
        min_valid: share of images a reward must be able to score.
        cache: SQLite file that remembers the scores of evaluations, so that the same pictures are scored once; empty for none.
    """

    judges: list[Term] = field(default_factory=lambda: [Term()])
    batch: int = 32
    min_valid: float = 0.5
    cache: str = ""


@dataclass(frozen=True)
class Rewards(Judges):
    """What is learned from, and what is only watched.

    Args:
        train: rewards that are learned from, together.
        mix: how they become one.
    """

    judges: list[Term] = field(default_factory=list)
    train: list[Term] = field(default_factory=lambda: [Term()])
    mix: Mix = field(default_factory=Mix)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation on held-out prompts with fixed seeds, in full before and after, on a few prompts in between.

    Args:
        every_rounds: interval of the small evaluation.
        small_prompts: prompts of the small evaluation, spread over the set.
        small_images: images of each prompt in the small evaluation; with one, the hacking alarm does not hear diversity.
        prompts: prompts of the full one; 0 takes all.
        images_per_prompt: images of each prompt in the full evaluation.
        pictures: which evaluations keep their pictures in the run's folder.
    """

    every_rounds: int = 10
    small_prompts: int = 48
    small_images: int = 2
    prompts: int = 0
    images_per_prompt: int = 4
    pictures: Literal["full", "all"] = "full"


def load(schema: type[C], arguments: Sequence[str] | None = None) -> C:
    """Settings from command-line arguments: ``--config file.yaml --dotted.name value``.

    A config that is no file is looked up among those that ship, ``ac_flow/shapes.yaml`` say.

    Raises:
        ConfigError: unknown key (near ones are named), wrong type, missing file.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    arguments = _shipped(list(sys.argv[1:] if arguments is None else arguments))
    parser = ArgumentParser(exit_on_error=False, description=(schema.__doc__ or "").strip().split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(schema)
    try:
        parsed = parser.parse_args(arguments)
        parsed.pop("config", None)
        return schema(**vars(parser.instantiate(parsed)))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(str(error), schema)) from None


def _shipped(arguments: list[str]) -> list[str]:
    """Resolve ``--config NAME`` to the package's own configs where no such file is at hand."""
    for index, argument in enumerate(arguments[:-1]):
        if argument == "--config" and not Path(arguments[index + 1]).is_file():
            candidate = Path(str(resources.files("genrl.configs"))) / arguments[index + 1].removeprefix("configs/")
            if candidate.is_file():
                arguments[index + 1] = str(candidate)
    return arguments


def keys(schema: type, prefix: str = "") -> list[str]:
    """All dotted keys of a schema."""
    found = []
    hints = get_type_hints(schema)
    for entry in fields(schema):
        kind = hints[entry.name]
        found += keys(kind, f"{prefix}{entry.name}.") if isinstance(kind, type) and is_dataclass(kind) else [prefix + entry.name]
    return found


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> plain value (lists and mappings as JSON has them): what checkpoints compare and trackers show."""
    flat: dict[str, Any] = {}
    for key, value in asdict(settings).items() if not isinstance(settings, dict) else settings.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def dump(settings: Any) -> str:
    """The settings as YAML."""
    return yaml.safe_dump(asdict(settings), sort_keys=False)


def _explain(message: str, schema: type) -> str:
    unknown = re.search(r"(?:--|option '|Option ')([\w.]+)", message)
    if unknown and ("not accept" in message or "unrecognized" in message):
        group = re.search(r"Group '([\w.]+)'", message)
        name = f"{group[1]}.{unknown[1]}" if group else unknown[1]
        near = difflib.get_close_matches(name, keys(schema), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "--help lists all keys"
        return f"unknown setting {name!r}; {hint}"
    return " ".join(message.split())
