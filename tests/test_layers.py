"""Imports point one way (CONTRIBUTING.md), and `import genrl` is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genrl

ROOT = Path(__file__).resolve().parents[1]
LINES = [
    "kernels precision settings threads offload",
    "types path seeds config",
    "chain feedback alarms pixels image_stats rules",
    "policy critic discriminator reward data mix",
    "preference remote prompts",
    "pool prompt_sets",
    "rollout",
    "losses",
    "algorithm",
    "checkpoint evaluation",
    "recorder learner preview task",
    "trainer",
    "models worlds",
    "doctor planner comparison",
    "cli trainers rewards",
]
LINE = {module: number for number, line in enumerate(LINES) for module in line.split()}
MODEL_LIBRARIES = {"diffusers", "transformers", "peft", "open_clip", "lpips"}
HEAVY = {*MODEL_LIBRARIES, "accelerate", "wandb", "tensorboard", "tensorboardX"}


def imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Every imported name of a file, dotted and absolute, also those inside functions. ``package`` holds the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            names = [alias.name for alias in node.names] if source == "genrl" else [""]
            yield from ((node.lineno, f"{source}.{name}".rstrip(".")) for name in names)


def complaint(module: str, file: str, name: str) -> str | None:
    """Why a file of a module may not import a dotted name; None if it may."""
    top, *rest = name.split(".")
    if top in MODEL_LIBRARIES:
        return None if module in ("models", "worlds", "rewards") else f"{top} belongs into models, worlds and rewards"
    if top == "accelerate":
        allowed = module in ("trainer", "checkpoint") or file == "trainers/_launch.py"
        return None if allowed else "accelerate belongs into trainer and checkpoint"
    if top in ("trainers", "rewards", "configs"):
        return f"the package is genrl.{top}"
    if top != "genrl" or name == "genrl.__version__":
        return None
    target = genrl.PUBLIC.get(rest[0], name).split(".")[1] if rest else ""  # a public name counts as its module
    if target not in LINE:
        return f"{name} is not on any line of the table"
    if target == module:
        return None
    if module == "rewards":
        special = {"worlds": Path(file).name.startswith("shapes_"), "remote": Path(file).name == "http.py"}
        fits = target in ("reward", "pixels", "image_stats") or special.get(target, False)
        return None if fits else "a reward imports genrl.reward and genrl.pixels, and other rewards"
    allowed = LINE[target] < LINE[module]
    return None if allowed else f"{module} (line {LINE[module] + 1}) may not import {target} (line {LINE[target] + 1})"


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(path for folder in ("genrl", "trainers", "rewards") for path in (root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        dotted = parts if parts[0] == "genrl" else ("genrl", *parts)
        if dotted == ("genrl", "__init__"):
            found += [
                f"genrl/__init__.py:{n}: loads {name}" for n, name in imports(path, "genrl") if name.split(".")[0] in {"genrl", *HEAVY}
            ]
            continue
        file = path.relative_to(root).as_posix()
        if dotted[1] not in LINE:
            found.append(f"{file}: {dotted[1]} is not on any line of the table")
            continue
        for number, name in imports(path, ".".join(dotted[:-1])):
            if why := complaint(dotted[1], file, name):
                found.append(f"{file}:{number}: {name}: {why}")
    return found


def test_imports_point_one_way():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "expected"),
    [
        ("genrl/path.py", "from genrl.chain import OdeChain", "path (line 2) may not import chain (line 3)"),
        ("genrl/path.py", "import genrl.types", "path (line 2) may not import types (line 2)"),
        ("genrl/chain.py", "def f():\n    from genrl import policy", "genrl/chain.py:2: genrl.policy"),
        ("genrl/chain.py", "from . import policy", "may not import policy"),
        ("genrl/losses/value.py", "from ..algorithm import Update", "may not import algorithm"),
        ("genrl/losses/value.py", "import numpy\nimport lpips", "losses/value.py:2: lpips"),
        ("genrl/policy.py", "from peft.tuners import lora", "peft belongs into"),
        ("genrl/rollout.py", "from accelerate.utils import gather", "accelerate belongs into"),
        ("genrl/checkpoint.py", "import genrl.trainer", "may not import trainer"),
        ("genrl/worlds/shapes/judge.py", "import genrl.models.sd3", "may not import models"),
        ("genrl/reward.py", "from genrl import fit", "may not import trainer"),
        ("genrl/cli.py", "from genrl import fitt", "genrl.fitt is not on any line"),
        ("genrl/cli.py", "import genrl.rewards.clip", "may not import rewards"),
        ("genrl/newcomer.py", "", "newcomer is not on any line"),
        ("genrl/__init__.py", "import genrl.path", "loads genrl.path"),
        ("trainers/ac_flow.py", "from accelerate import Accelerator", "accelerate belongs into"),
        ("trainers/ac_flow.py", "import rewards.clip", "the package is genrl.rewards"),
        ("rewards/clip.py", "from genrl.worlds.shapes import judge", "a reward imports genrl.reward and genrl.pixels"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, code: str, expected: str):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code)
    (found,) = violations(tmp_path)
    assert expected in found


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("genrl/trainer.py", "import accelerate\nfrom genrl.checkpoint import latest\nfrom genrl.evaluation import report"),
        ("genrl/losses/value.py", "from genrl.losses.noise import draw\nfrom . import noise\nfrom genrl import __version__, path"),
        ("genrl/worlds/shapes/pretrain.py", "import diffusers\nfrom genrl.worlds.shapes.judge import judge"),
        ("trainers/_launch.py", "from accelerate import Accelerator\nfrom genrl import __version__, fit"),
        ("trainers/ac_flow.py", "from genrl.trainers._launch import launch"),
        ("rewards/shapes_judge.py", "from genrl.reward import Reward\nfrom genrl.worlds.shapes import judge\nimport open_clip"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, file: str, code: str):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code)
    assert violations(tmp_path) == []


def loaded_by(*modules: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after importing these."""
    code = f"import sys, {', '.join(modules)}; dir(genrl); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_import_genrl_is_light():
    assert loaded_by("genrl").isdisjoint({*HEAVY, "torch"})


def test_the_library_below_the_trainer_loads_no_model_library():
    modules = [f"genrl.{name}" for line in LINES[:5] for name in line.split() if list((ROOT / "genrl").glob(f"{name}*"))]
    assert loaded_by("genrl", *modules).isdisjoint(HEAVY)


def test_public_names_resolve():
    for name, module in genrl.PUBLIC.items():
        assert getattr(genrl, name).__name__ == name, f"genrl.{name} is not what {module} defines"
        assert name not in LINE, f"importing genrl.{name} would replace the public name by the module"
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        genrl.fitt  # noqa: B018


if __name__ == "__main__":
    print("\n".join(violations(ROOT)) or "imports point one way")
