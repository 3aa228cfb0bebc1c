"""Every config that ships loads, says what it is, and builds what it names."""

import importlib
from pathlib import Path

import pytest

from genrl import config
from genrl.config import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))


def schema(path):
    return importlib.import_module(f"genrl.trainers.{path.parent.name}").Config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_shipped_config_loads_and_introduces_itself(path):
    settings = config.load(schema(path), ["--config", str(path)])
    assert settings.run.rounds > 0
    head = path.read_text().split("\nrun:")[0]
    assert all(line.startswith("#") for line in head.strip().splitlines())
    for word in ("arXiv", "accelerate launch", "Hardware:", "Wall time"):
        assert word in head, f"{path} does not say: {word}"
    assert path.name in head, "the command names its own file"


def test_the_four_configs_are_there():
    names = {p.stem for p in CONFIGS}
    assert names >= {"shapes", "shapes_full", "sd3_medium_lora", "sd3.5_medium_lora", "sd3.5_medium_full"}


def load(*arguments):
    return config.load(schema(CONFIGS[0]), arguments)


def test_yaml_and_dotted_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: {rounds: 7}\nrewards:\n  train:\n  - {name: jpeg_size, options: {grow: true}}\n")
    settings = load("--config", str(path), "--run.seed", "3", "--actor.lr", "1e-5")
    assert (settings.run.rounds, settings.run.seed, settings.actor.lr) == (7, 3, 1e-5)
    assert settings.rewards.train[0].options == {"grow": True}
    assert load("--config", "ac_flow/shapes.yaml").model.source == "shapes", "a shipped config by its short name"


@pytest.mark.parametrize(
    ("yaml", "why"),
    [
        ("run: {round: 3}", "unknown setting 'run.round'; did you mean run.rounds"),
        ("actr: {lr: 1}", "unknown setting 'actr.lr'; did you mean actor.lr"),
        ("run: {rounds: many}", "run.rounds.*int.*many"),
        ("actor: {weighting: expp}", "actor.weighting.*exp"),
        ("rewards: {train: [{nam: x}]}", "nam"),
        ("run: [", "yaml|parse|expected"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, yaml, why):
    path = tmp_path / "c.yaml"
    path.write_text(yaml)
    with pytest.raises(ConfigError, match=f"(?is){why}"):
        load("--config", str(path))


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match=r"did you mean run\.seed"):
        load("--run.sead", "3")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load("--config", "nowhere.yaml")


def test_dump_reads_back(tmp_path):
    settings = load("--run.rounds", "9", "--actor.beta", "0.25")
    path = tmp_path / "c.yaml"
    path.write_text(config.dump(settings))
    assert load("--config", str(path)) == settings
    assert config.flatten(settings)["actor.beta"] == 0.25
