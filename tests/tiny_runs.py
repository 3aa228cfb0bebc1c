"""Short runs on the shipped pipeline: a few rounds of a few samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from genrl.trainers._launch import launch

ROOT = Path(__file__).parents[1]
TINY = {
    "run.rounds": 6,
    "run.save_every_rounds": 2,
    "run.tracker": "none",
    "data.prompts": 4,
    "data.group_size": 4,
    "sampling.steps": 3,
    "evaluation.every_rounds": 3,
    "evaluation.prompts": 12,
    "evaluation.small_prompts": 6,
    "evaluation.images_per_prompt": 2,
    "actor.warmup_rounds": 2,
    "actor.minibatch": 8,
    "critic.minibatch": 8,
    "critic.width": 16,
}
TINY_STUDENT = {
    **{key: value for key, value in TINY.items() if key.startswith(("run.", "evaluation."))},
    "data.prompts": 6,
    "data.real_images": 24,
    "actor.minibatch": 6,
    "gan.width": 8,
    "teacher.steps": 3,
    "teacher.curve": [1, 2],
}
TINY_HEAD = {key: value for key, value in TINY.items() if key.startswith(("run.", "data.", "sampling."))}
TINY_RATIO = {key: value for key, value in TINY.items() if not key.startswith("critic.") and key != "actor.warmup_rounds"}
TRAINERS = {
    "ac_flow": TINY,
    "flow_grpo": {**TINY_RATIO, "actor.passes": 2},
    "latent_reward": {**TINY_HEAD, "head.width": 16, "head.passes": 1},
    "flash_dmd": TINY_STUDENT,
    "dmd2": {**TINY_STUDENT, "fake_per_student": 2},
}


def arguments(folder: Path, name: str = "tiny", trainer: str = "ac_flow", **changes) -> list[str]:
    """Arguments of a tiny run; ``changes`` has "__" for the dots of a key."""
    own = {"run.folder": folder, "run.name": name, **{key.replace("__", "."): value for key, value in changes.items()}}
    settings = {**TRAINERS[trainer], **own}
    found = ["--config", str(ROOT / "configs" / trainer / "shapes.yaml")]
    for key, value in settings.items():
        found += [f"--{key}", value if isinstance(value, str) else json.dumps(value) if not isinstance(value, Path) else str(value)]
    return found


def start(arguments: list[str], processes: int = 0, module: bool = False, **popen) -> subprocess.Popen:
    """The trainer in a process of its own; with ``processes`` under ``accelerate launch``."""
    trainer = Path(arguments[1]).parent.name
    program = ["-m", f"genrl.trainers.{trainer}"] if module else [str(ROOT / "trainers" / f"{trainer}.py")]
    command = [sys.executable, *program, *arguments]
    if processes:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no"]
        launcher += ["--dynamo_backend", "no", "--num_processes", str(processes), "--num_cpu_threads_per_process", "1"]
        if processes > 1:
            launcher += ["--main_process_port", str(20000 + os.getpid() % 20000)]
        command = [*launcher, *program, *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=arguments_folder(arguments), **popen)


def arguments_folder(arguments: list[str]) -> str:
    return arguments[arguments.index("--run.folder") + 1]


def run_here(arguments: list[str]) -> None:
    """Run to the end in this process, which saves the start of another one."""
    trainer = import_module(f"genrl.trainers.{Path(arguments[1]).parent.name}")
    launch(trainer.Config, trainer.build, arguments, getattr(trainer, "finish", None))


def run(arguments: list[str], processes: int = 0, module: bool = False) -> str:
    """Run to the end; returns what it printed, fails with it otherwise."""
    process = start(arguments, processes, module)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


def metrics(folder: Path, name: str = "tiny") -> list[dict]:
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
