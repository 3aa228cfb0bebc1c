"""The documentation cites what exists: commands with their options, settings with their values, metrics, files, tests and names."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from pages import GUIDES, ROOT, blocks, named, prose, spans

from genrl import config

TRAINERS = ("ac_flow", "flow_grpo", "flash_dmd", "dmd2", "latent_reward")
CITING = [*GUIDES, ROOT / "README.md"]


# -- commands


@cache
def parser() -> argparse.ArgumentParser:
    """That of ``genrl``."""
    from genrl import cli

    class Caught(Exception):
        pass

    found = []

    def catch(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        found.append(self)
        raise Caught

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Caught):
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        cli.main([])
    return found[0]


def lines(block: str) -> list[str]:
    """Commands of a block, joined where a backslash continues them, without comments and prompts."""
    joined = block.replace("\\\n", " ")
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def commands(start: str) -> list[tuple[str, str]]:
    found = []
    for page in CITING:
        for _, block in blocks(page):
            for line in lines(block):
                told = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
                if told.startswith(start):
                    found.append((named(page), told))
    return found


def benchmarks() -> list[tuple[str, str]]:
    """Commands that run a benchmark, in blocks and in sentences."""
    inline = [(named(page), span) for page in GUIDES for span in spans(prose(page)) if span.startswith("python benchmarks/")]
    return [*commands("python benchmarks/"), *inline]


def test_there_are_commands_to_check():
    assert len(commands("genrl ")) > 10 and len(commands("accelerate launch ")) > 15 and len(benchmarks()) > 10


@pytest.mark.parametrize(("page", "command"), [found for found in commands("genrl ") if "..." not in found[1]])
def test_commands_of_genrl_are_understood(page, command, capsys):
    try:
        parser().parse_args(shlex.split(command, comments=True)[1:])
    except SystemExit:
        pytest.fail(f"{page}: {command}\n{capsys.readouterr().err}")


@pytest.mark.parametrize(("page", "command"), [found for found in commands("accelerate launch ") if "..." not in found[1]])
def test_commands_that_train_are_understood(page, command, tmp_path, monkeypatch):
    from accelerate.commands.launch import launch_command_parser

    words = shlex.split(command.replace("$RANK", "0").replace("$MAIN", "127.0.0.1"), comments=True)
    told = launch_command_parser().parse_args(words[2:])
    script, given = told.training_script, [word for word in told.training_script_args if word != "--dry-run"]
    name = script.removeprefix("genrl.trainers.") if told.module else Path(script).stem
    assert name in TRAINERS and (told.module or (ROOT / script).is_file()), page
    monkeypatch.chdir(tmp_path)
    for folder in ("folder_of_pictures", "pictures"):
        Path(folder).mkdir()
    settings = config.load(importlib.import_module(f"genrl.trainers.{name}").Config, given)
    assert settings.run.rounds > 0


@pytest.mark.parametrize(("page", "command"), benchmarks())
def test_benchmarks_have_the_options_that_are_named(page, command):
    script, *given = shlex.split(command, comments=True)[1:]
    source = (ROOT / script).read_text()
    for option in (word for word in given if word.startswith("--")):
        assert f'"{option}"' in source, f"{page}: {script} has no {option}"


def test_targets_of_make_and_tests_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in GUIDES:
        text = page.read_text("utf-8")
        assert set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)(?=`|\s*(?:#|$))", text, re.MULTILINE)) <= targets, page.name
        for path in re.findall(r"-m pytest (\S+)", text):
            assert (ROOT / path).exists(), path


# -- what inline code names


@cache
def options() -> dict[str, type]:
    """Every dotted option of a trainer, and every section -> a schema that has it."""
    found: dict[str, type] = {}
    for name in TRAINERS:
        schema = importlib.import_module(f"genrl.trainers.{name}").Config
        for key in config.keys(schema):
            parts = key.split(".")
            found |= {".".join(parts[: count + 1]): schema for count in range(len(parts)) if ".".join(parts[: count + 1]) not in found}
    return found


def cited_options(page: Path) -> list[tuple[str, str]]:
    """Option and value, "" if none is given, of inline code and of the commands of a page."""
    sections = {key.split(".")[0] for key in options()}
    found = []
    for span in spans(prose(page)):
        told = re.fullmatch(r"(?:--)?(\w+(?:\.\w+)+)(?:(?:: |=| )(\S.*))?", span)
        if told and told[1].split(".")[0] in sections and not told[1].endswith((".py", ".md", ".json", ".yaml", ".html")):
            found.append((told[1], told[2] or ""))
    return found


@pytest.mark.parametrize("page", CITING, ids=named)
def test_options_exist_and_take_the_values_that_are_named(page):
    for key, value in cited_options(page):
        assert key in options(), f"{named(page)} names {key}, which no trainer has"
        if value and re.fullmatch(r"[\w.+-]+", value):
            taken(key, value)


@cache
def taken(key: str, value: str) -> None:
    config.load(options()[key], [f"--{key}={value}"])


def test_options_that_nobody_has_are_found():
    assert "actor.lr" in options() and "rewards.mix" in options() and "actor.learning_rate" not in options()
    assert len([key for page in GUIDES for key, _ in cited_options(page)]) > 100


@cache
def metrics() -> list[re.Pattern[str]]:
    """What losses, the mix and the loop log, as patterns: a formatted part may be anything."""
    found = set()
    for path in [*(ROOT / "genrl").rglob("*.py"), *(ROOT / "trainers").glob("*.py")]:
        found |= set(re.findall(r'"([a-z_]+/[^"\s]*)"', path.read_text("utf-8")))
    made = [name for name in found if name.split("/")[0] in FAMILIES]
    return [re.compile(re.sub(r"\\\{.*?\\\}", ".+", re.escape(name))) for name in made]


FAMILIES = {
    "policy", "critic", "mix", "reward", "grad_norm", "loss", "preview", "student", "discriminator", "latent_gradient", "latent_reward",
    "preference", "held_out",
}  # fmt: skip


@pytest.mark.parametrize("page", CITING, ids=named)
def test_metrics_exist(page):
    for span in spans(prose(page)):
        if re.fullmatch(r"[a-z_]+/[\w<>./-]+", span) and span.split("/")[0] in FAMILIES and not span.endswith((".yaml", ".safetensors")):
            assert any(pattern.fullmatch(span) for pattern in metrics()), f"{named(page)} names the metric {span}, which nothing logs"


def test_metrics_that_nothing_logs_are_found():
    assert any(pattern.fullmatch("mix/share/pick") for pattern in metrics())
    assert not any(pattern.fullmatch("policy/entropy") for pattern in metrics())


@cache
def tests() -> str:
    """All tests, as text."""
    return "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_files_and_names_exist(page):
    text = prose(page)
    places = ("tests", "genrl", "trainers", "rewards", "configs", "benchmarks", "notebooks", "docs")
    for span in spans(text):
        told = re.fullmatch(rf"((?:{'|'.join(places)})/[\w./*{{}},-]+)", span)
        if told and not told[1].startswith("rewards/") and "<" not in span:
            assert list(ROOT.glob(re.sub(r"\{[^}]*\}", "*", told[1]))), f"{named(page)} names {span}"
        if re.fullmatch(r"test_\w+", span):
            assert f"def {span}" in tests(), f"{named(page)} names {span}"
        if re.fullmatch(r"genrl(?:\.\w+)+", span) and not span.endswith("."):
            pkgutil.resolve_name(span)


@pytest.mark.parametrize("page", CITING, ids=named)
def test_commands_within_a_sentence_exist(page):
    for span in spans(prose(page)):
        if not span.startswith("genrl "):
            continue
        here = parser()
        for word in shlex.split(span)[1:]:
            nested = [action for action in here._actions if isinstance(action, argparse._SubParsersAction)]
            if nested and not word.startswith("-"):
                assert word in nested[0].choices, f"{named(page)} names {span}"
                here = nested[0].choices[word]
            elif word.startswith("--"):
                assert word in here._option_string_actions, f"{named(page)} names {span}"
