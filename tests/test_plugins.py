"""A reward of somebody else's: found by name, looked up, examined, and worth the same however it is reached."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch

from genrl.cli import main
from genrl.reward import about, check_scores, load_reward, reward_names

FOLDER = Path(__file__).parent / "fixtures" / "genrl-reward-example"
SOURCE = FOLDER / "genrl_reward_example" / "__init__.py"
# the same two rewards, by three kinds of name
SHARPNESS = {"package": "example_sharpness", "module": "genrl_reward_example:Sharpness", "file": f"{SOURCE}:Sharpness"}
WARMTH = {"package": "example_warmth", "module": "genrl_reward_example:warmth", "file": f"{SOURCE}:warmth"}
PROMPTS, METADATA = ["a"] * 6, [{}] * 6


def missing() -> bool:
    try:
        version("genrl-reward-example")
    except PackageNotFoundError:
        return "CI" not in os.environ
    return False


pytestmark = pytest.mark.skipif(missing(), reason=f"genrl-reward-example is not installed: make test does it, or pip install -e {FOLDER}")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 20, 24)


def variance_of_the_laplacian(images: torch.Tensor, average: int) -> list[float]:
    """In numpy, by summing shifted copies, apart from the package."""
    found = []
    for picture in images.double().numpy():
        grey = picture.mean(0)
        high, wide = (side // average for side in grey.shape)
        grey = grey[: high * average, : wide * average].reshape(high, average, wide, average).mean((1, 3))
        kernel = {(0, 1): 1, (1, 0): 1, (1, 2): 1, (2, 1): 1, (1, 1): -4}
        found.append(np.var(sum(weight * grey[y : high - 2 + y, x : wide - 2 + x] for (y, x), weight in kernel.items())))
    return found


def test_the_package_is_listed_and_nothing_of_it_is_imported():
    code = "import sys; from genrl.cli import main; main(['rewards', 'list']); assert 'genrl_reward_example' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert ["example_sharpness", "genrl_reward_example:Sharpness"] in lines and ["example_warmth", "genrl_reward_example:warmth"] in lines
    assert {"example_sharpness", "example_warmth"} <= reward_names().keys()


def test_info_says_what_the_class_says(capsys):
    main(["rewards", "info", "Example-Sharpness"])
    said = capsys.readouterr().out
    assert "Variance of the Laplacian" in said and "(average: 'int' = 1)" in said and "0.0, 16.0" in said
    main(["rewards", "info", "example_warmth"])
    said = capsys.readouterr().out
    assert "Mean red minus mean blue" in said and "options" not in said


@pytest.mark.parametrize("name", ["example_sharpness", "example_warmth"])
def test_the_doctor_has_nothing_to_say_against_them(name, capsys):
    main(["rewards", "doctor", name, "--size", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 8 and {line.split()[0] for line in lines} == {"ok", "skip"}


@pytest.mark.parametrize("name", SHARPNESS.values(), ids=SHARPNESS)
@pytest.mark.parametrize("average", [1, 3])
def test_scores_of_the_class_are_the_formula(name, average, images):
    got = check_scores(name, load_reward(name, average=average)(images, PROMPTS, METADATA), 6)
    assert got.tolist() == pytest.approx(variance_of_the_laplacian(images, average), rel=1e-5)


@pytest.mark.parametrize("name", WARMTH.values(), ids=WARMTH)
def test_scores_of_the_function_are_the_formula(name, images):
    reward = load_reward(name)
    expected = (images[:, 0] - images[:, 2]).flatten(1).mean(1)
    torch.testing.assert_close(check_scores(name, reward(images, PROMPTS, METADATA), 6), expected)
    assert not about(reward).reads_prompt


def test_a_wrong_option_is_told_in_the_words_of_the_package(capsys):
    with pytest.raises(SystemExit):
        main(["rewards", "doctor", "example_sharpness", "--options", '{"average": 0}'])
    assert "average must be at least 1 pixel; got 0" in capsys.readouterr().out


@contextmanager
def served(name: str, options: dict[str, object]) -> Iterator[str]:
    """The URL at which ``genrl rewards serve`` answers, in a process of its own."""
    command = [sys.executable, "-c", "from genrl.cli import main; main()", "rewards", "serve", name]
    command += ["--options", json.dumps(options), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert "answers at" in first, first
            yield first.split("answers at ")[1].split(";")[0]
        finally:
            process.terminate()


@pytest.mark.slow
def test_a_file_a_package_and_a_server_train_alike_to_the_last_bit(tmp_path):
    def train(where: str, name: str, options: dict[str, object]) -> bytes:
        terms = [{"name": name, "label": "sharp", "options": options}]
        short = {"run__rounds": 3, "evaluation__prompts": 6, "evaluation__small_prompts": 4, "actor__warmup_rounds": 1}
        tiny_runs.run_here(tiny_runs.arguments(tmp_path, where, rewards__train=terms, **short))
        return (tmp_path / where / "metrics.jsonl").read_bytes()

    options: dict[str, object] = {"average": 2}
    package = train("package", SHARPNESS["package"], options)
    rounds = [json.loads(line) for line in package.splitlines()]
    assert len(rounds) == 3 and any("sharp" in key for key in rounds[0])
    assert train("file", SHARPNESS["file"], options) == package
    assert train("option", SHARPNESS["file"], {"average": 1}) != package
    with served(SHARPNESS["file"], options) as url:
        assert train("server", "http", {"url": url}) == package


def test_the_package_is_a_module_of_its_own():
    module = importlib.import_module("genrl_reward_example")
    assert Path(module.__file__ or "").resolve() == SOURCE.resolve(), "installed without -e: the tests would see a copy"
