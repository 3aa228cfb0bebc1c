"""Settings that all trainers share; ``genrl.settings`` reads them from YAML and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from genrl.precision import Precision
from genrl.settings import ConfigError as ConfigError
from genrl.settings import dump as dump
from genrl.settings import flatten as flatten
from genrl.settings import keys as keys
from genrl.settings import load as load


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
        max_sequence_length: T5 tokens, or zeros in its place; 0 takes as many as the longest prompt of the run has.
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
        guidance_low: noise level below which there is none; a step without it costs half.
        guidance_high: noise level above which there is none.
        chunk: samples per forward pass.
    """

    steps: int = 10
    guidance: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    chunk: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.guidance_low <= self.guidance_high <= 1:
            raise ConfigError(
                f"sampling.guidance_low and .guidance_high are noise levels from 0 to 1, low first; got {self.guidance_low} and "
                f"{self.guidance_high}"
            )


@dataclass(frozen=True)
class Speed:
    """How fast a run is and how much memory it takes, not what it learns; see docs/speed.md.

    Args:
        kernels: fused kernels in the blocks of SD3's transformer; SDXL has none.
        attention: torch's own choice (sdpa), one of its kernels, or xformers; auto times those that run on a GPU and takes the fastest.
        compile: compile the network's repeated blocks, which takes minutes when a run starts. Fuses what kernels fuse: not with both.
        cuda_graphs: sampling replays CUDA graphs of the network.
        vae: decode picture by picture (slicing), or large pictures piece by piece (tiling, seams are blended): less memory.
        embeddings: folder that remembers text embeddings, so that the same prompts are encoded once; empty for none.
        offload: roles that wait on the CPU and come to the device while they are used, with model.tune full: old, ref or average, say.
    """

    kernels: bool = False
    attention: Literal["auto", "sdpa", "flash", "cudnn", "efficient", "math", "xformers"] = "sdpa"
    compile: bool = False
    cuda_graphs: bool = False
    vae: Literal["none", "slicing", "tiling"] = "none"
    embeddings: str = ""
    offload: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.kernels and self.compile:
            raise ConfigError("speed.kernels and speed.compile fuse the same operations: choose one of them")


@dataclass(frozen=True)
class Preview:
    """Candidates that are drawn cheaply; the best and the worst of them are drawn again in full. See genrl/preview.py.

    Args:
        factor: candidates for each sample that is learned from; 1 is off.
        steps: steps of a preview; 0 as many as in full.
        fp8: large layers in float8, where the device can.
        cache: threshold of the first-block cache; 0 is without.
        min_tau: Kendall's tau between the scores of previews and of full pictures, below which previews are given up.
        check_every_rounds: how often it is measured, beginning with the first round.
        check_prompts: prompts of such a round whose candidates are all drawn in full, rounded up to the same number on each process.
    """

    factor: int = 1
    steps: int = 0
    fp8: bool = False
    cache: float = 0.0
    min_tau: float = 0.5
    check_every_rounds: int = 10
    check_prompts: int = 2


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
