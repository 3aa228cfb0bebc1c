"""From settings to a running ``fit``: what every trainer does around its algorithm."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from genrl import config
from genrl.algorithm import REAL, Algorithm
from genrl.chain import Chain, Guidance, RenoiseChain
from genrl.checkpoint import CheckpointError
from genrl.data import PromptError, PromptSet, load_images, load_prompts, repeated
from genrl.evaluation.hacking import verdict
from genrl.evaluation.reading import full_ends, on_common, read_evaluations
from genrl.evaluation.report import write_report
from genrl.evaluation.summary import summarise
from genrl.evaluation.watch import Watch
from genrl.learner import TrainingError
from genrl.models import load_generator
from genrl.models._diffusers import DiffusersModel
from genrl.models._lora import lora_config
from genrl.models._source import ModelError
from genrl.policy import ACTOR, Adapters, Copies, FlowPolicy
from genrl.reward import RewardError, about
from genrl.threads import fit_threads
from genrl.trainer import Task, fit
from genrl.trainers._rewards import Scorers, load_rewards
from genrl.types import Prompt
from genrl.worlds.shapes import PIPELINES
from genrl.worlds.shapes.scenes import random_scene, render

log = logging.getLogger(__name__)

EXPECTED = (config.ConfigError, PromptError, ModelError, RewardError, CheckpointError, TrainingError, ValueError)


Build = Callable[[Any, Any], tuple[Algorithm, FlowPolicy]]
Finish = Callable[[FlowPolicy, Path, Any], None]


def launch(schema: type, build: Build, arguments: Sequence[str] | None = None, finish: Finish | None = None) -> None:
    """Run a trainer from the command line, or with ``--dry-run`` print what a run would take; a foreseen failure is one message and exit
    code 1."""
    from genrl.trainers._plan import DRY_RUN, dry_run

    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        settings = config.load(schema, [argument for argument in given if argument not in DRY_RUN])
        (dry_run if set(DRY_RUN).intersection(given) else run)(settings, build, finish)
    except EXPECTED as error:
        print(f"\nerror: {error}", file=sys.stderr)
        raise SystemExit(1) from (None if not isinstance(error, RewardError) else error.__cause__)


def run(settings: Any, build: Build, finish: Finish | None = None) -> Path:
    """Build everything the settings name, train, and leave behind pipeline, summary and report. Returns the run's folder.

    ``finish(policy, folder, settings)`` writes what else the training was for, on the main process.
    """
    # the cheap checks come first: nothing is loaded for a run that cannot start
    train, held_out = load_prompts(settings.data.train), load_prompts(settings.data.held_out)
    train = [train[i] for i in repeated(train, getattr(settings.data, "repeat", {}))]
    folder = Path(settings.run.folder) / settings.run.name
    tracker = None if settings.run.tracker == "none" else settings.run.tracker
    accelerator = Accelerator(cpu=settings.run.device == "cpu", log_with=tracker, project_dir=str(folder))
    if accelerator.device.type == "cpu":
        # accelerate gives each CPU process a single thread; rewards in processes of their own take over what is set here
        fit_threads(accelerator.num_processes)
    with closing(load_rewards(settings.rewards)) as scorers:
        scorers.judges.check([p.text for p in train + held_out], [p.metadata for p in train + held_out])
        torch.manual_seed(settings.run.seed)
        model = load_model(settings.model, accelerator.device, getattr(settings, "speed", config.Speed()))
        algorithm, policy = build(settings, model)
        task = make_task(settings, model, algorithm, scorers, train, held_out)
        algorithm.validate(policy)
        fit_task(settings, algorithm, policy, task, accelerator)
        if finish and accelerator.is_main_process:
            finish(policy, folder, settings)
        if algorithm.result and accelerator.is_main_process:
            with policy.storage.use(algorithm.result) as network:
                model.export(network, folder / "pipeline", student_steps(algorithm.chain))
            report_on(folder, algorithm, scorers)
        accelerator.wait_for_everyone()
    return folder


def make_task(
    settings: Any, model: DiffusersModel, algorithm: Algorithm, scorers: Scorers, train: list[Prompt], held_out: list[Prompt]
) -> Task:
    """Prompts with their embeddings, rewards, and real images where a loss asks for them. Frees the text encoders."""
    texts = list(dict.fromkeys(prompt.text for prompt in train + held_out))
    rows = {text: row for row, text in enumerate(texts)}
    cond = model.encode(texts)
    model.release_encoders()
    sets = [PromptSet(prompts, cond.index(torch.tensor([rows[p.text] for p in prompts]))) for prompts in (train, held_out)]
    wanted = algorithm.requires.intersection(REAL)
    real = load_real(settings.data.real, settings.data.real_images, model, wanted) if wanted else {}
    # a latent reward that ranks inside a loss scores no pictures: nothing is heard of it
    heard = [name for name in (*scorers.trained, *algorithm.rewards) if name in scorers.judges.rewards]
    for name in heard:
        if about(scorers.judges.rewards[name]).kind == "group":
            log.warning("%s compares the pictures of a prompt, so its mean cannot rise and the hacking alarm cannot hear it", name)
    watch = Watch(heard, scorers.witnesses)
    return Task(*sets, rewards=scorers.rewards, mix=scorers.mix, judges=scorers.judges, watch=watch, real=real)


def fit_task(settings: Any, algorithm: Algorithm, policy: FlowPolicy, task: Task, accelerator: Accelerator) -> None:
    """``fit``, with trackers and what the run's folder says of the settings."""
    flat = config.flatten(settings)
    accelerator.init_trackers(
        "genrl", {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in flat.items()}
    )
    # how long a run may go on, how fast it is, and where it logs, may change between a run and its continuation
    compared = {
        key: value
        for key, value in flat.items()
        if key not in ("run.rounds", "run.resume", "run.tracker", "run.folder", "run.keep", "run.save_every_rounds", "rewards.cache")
        and not key.startswith("speed.")
    }
    fit(
        algorithm,
        policy,
        task,
        run=settings.run,
        chunk=settings.sampling.chunk,
        evaluate=getattr(settings, "evaluation", config.Evaluation()),
        settings=compared,
        accelerator=accelerator,
        notes={
            "config.yaml": config.dump(settings),
            "versions.json": json.dumps(versions(settings.run.seed, accelerator) | getattr(policy.model, "chosen", {}), indent=1) + "\n",
        },
    )


def report_on(folder: Path, algorithm: Algorithm, scorers: Scorers) -> None:
    """Summary and report of a finished run, and its outcome in the terminal."""
    trained, (judge, proxy) = (*scorers.trained, *algorithm.rewards), scorers.names
    # what training asked is the proxy, wherever it stands among the judges
    asked = [name for name in trained if name in scorers.judges.rewards and name != judge]
    proxy = proxy if proxy in trained else next(iter(asked), proxy)
    summary = summarise(folder, judge, proxy, trained)
    report = write_report(folder)
    ends = "{judge_before:.3f} -> {judge_after:.3f} ({judge_gain:+.3f}".format(**summary)
    low, high = summary["judge_gain_ci95"]
    print(f"\n{judge} on held-out prompts: {ends}, 95 % interval {low:+.3f} to {high:+.3f})")
    if trained and judge not in trained:
        first, last = on_common(full_ends(read_evaluations(folder)))
        print(verdict(first.scores, last.scores, judge, proxy, trained).sentence)
    print(f"report: {report}")


def student_steps(chain: Chain) -> int:
    """Steps of a student's sampler; 0 for any other, whose exported pipeline keeps its own scheduler."""
    return len(chain.sigmas) - 1 if isinstance(chain, RenoiseChain) else 0


def load_real(source: str, count: int, model: DiffusersModel, wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Real images, a folder's or pictures of the shapes world, as the signals ``REAL``.

    Images are decoded encodings, once and for all: a discriminator would tell raw ones by the autoencoder's fingerprints.
    """
    if source == "shapes":
        rng = np.random.default_rng(20)
        images = torch.from_numpy(np.stack([render(random_scene(rng)) for _ in range(count)]))
    else:
        images = load_images(source, count, model.size)
    latents, decoded = [], []
    for part in images.split(32):
        latents.append(model.encode_images(part / 255 if part.dtype == torch.uint8 else part))
        if "real_images" in wanted:
            with torch.no_grad():
                decoded.append((model.decode(latents[-1]) * 255).round().byte().cpu())
    found = {"real_latents": torch.cat(latents).cpu(), "real_images": torch.cat(decoded) if decoded else torch.empty(0)}
    return {name: found[name] for name in wanted}


def source_of(name: str) -> str:
    """The folder of an embedded model; any other source as it is."""
    return str(PIPELINES.get(name, name))


def load_model(settings: config.Model, device: torch.device, speed: config.Speed = config.Speed()) -> DiffusersModel:  # noqa: B008
    if settings.tune == "full" and settings.precision.weights != "fp32":
        raise config.ConfigError("model.precision.weights is of frozen weights; with model.tune full they are trained, and stay fp32")
    kept = ("revision", "precision", "height", "width", "t5", "max_sequence_length", "gradient_checkpointing")
    return load_generator(source_of(settings.source), device=device, speed=speed, **{key: getattr(settings, key) for key in kept})


def guidance_of(settings: config.Sampling) -> Guidance:
    return Guidance(settings.guidance, settings.guidance_low, settings.guidance_high)


def storage_of(
    settings: config.Model,
    model: DiffusersModel,
    roles: tuple[str, ...],
    trained: tuple[str, ...] = (ACTOR,),
    given: Mapping[str, torch.nn.Module] | None = None,
    offload: Collection[str] = (),
) -> Copies | Adapters:
    """Roles as full copies or as LoRA adapters, as the settings say; ``given`` networks play their role themselves.

    Raises:
        ConfigError: adapters are to be offloaded; ValueError: a role that cannot be.
    """
    if settings.tune == "full":
        return Copies(model.network, roles, trained, given, offload)
    if offload:
        raise config.ConfigError("with model.tune lora all roles share one network, so there is none to offload: leave speed.offload empty")
    return Adapters(model.network, roles, lora_config(settings.lora.rank, settings.lora.alpha, settings.lora.targets), trained)


def versions(seed: int, accelerator: Accelerator) -> dict[str, Any]:
    """What is needed to repeat a run."""
    packages = {name: version(name) for name in ("genrl-image", "torch", "diffusers", "transformers", "accelerate", "peft")}
    git = subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": " ".join(sys.argv),
        "seed": seed,
        "commit": git.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        **packages,
    }
