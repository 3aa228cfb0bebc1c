"""What is compared: a model or a folder of pictures, found by what a user types.

A subject is written ``[label=]source[?steps=4&guidance=1.5]``, where the source is a diffusers folder, a hub id, a run's folder, an adapter
(a folder with ``pytorch_lora_weights.safetensors``, a file of it, or ``lora:hub/id``), or a folder of pictures drawn elsewhere. Behind the
question mark stand arguments of the pipeline's call; they win over the command's ``--steps`` and ``--guidance``, and those over a run's own
settings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import yaml

from genrl.data import PICTURES
from genrl.models.drawing import LORA_WEIGHTS, Settings
from genrl.worlds.shapes import PIPELINES

Kind = Literal["pipeline", "lora", "run", "pictures"]

EMBEDDED = Settings(options={"max_sequence_length": 1}, absent=("text_encoder_3", "tokenizer_3"))
"""How the shapes world's SD3 is called: it was trained without T5."""


class SubjectError(ValueError):
    """A subject that cannot be found or read; the message says what was looked for."""


@dataclass(frozen=True)
class Subject:
    """One column of a comparison.

    Args:
        label: what it is called; source: what draws, or holds the pictures.
        kind: what the source is; settings: how it is called. lora: the adapter, where it is one.
        given: settings that were named by the user for this subject, which nothing overrides.
        train: the prompt file of the run that made it, to look for leaks.
    """

    label: str
    source: str
    kind: Kind
    settings: Settings = Settings()  # noqa: RUF009
    lora: str = ""
    given: tuple[str, ...] = ()
    train: str = ""

    def called_with(self, **asked: Any) -> Subject:
        """The subject with settings that are asked for of all subjects, where it was not given its own."""
        own = {name: value for name, value in asked.items() if value is not None and name not in self.given}
        return replace(self, settings=replace(self.settings, **own)) if self.kind != "pictures" else self


def subjects(texts: Sequence[str], base: str = "", steps: Sequence[int] = (), guidance: float | None = None) -> list[Subject]:
    """The subjects that a user names, the base first.

    Args:
        texts: see the module's first lines; base: another one, that all are compared with. Without it the base is what the first adapter or
            run was made from, if that is known, else the first subject.
        steps, guidance: for all whose text names none; several numbers of steps make several subjects of each, ``label@steps``.

    Raises:
        SubjectError: nothing there, an adapter without a base, or two of one label.
    """
    found = [_find(text, base) for text in texts]
    first = _find(base, "") if base else next(filter(None, map(_made_from, found)), None)
    if first is not None:
        # a run may be called what its base is called: that is no reason to leave the base out
        same = [one for one in found if (one.label, one.source, one.kind) == (first.label, first.source, first.kind)]
        found = [*(same or [first]), *(subject for subject in found if subject not in same)]
    made = [one.called_with(guidance=guidance) for subject in found for one in _over(subject, steps)]
    labels = [subject.label for subject in made]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise SubjectError(f"two subjects are called {', '.join(twice)}; write label=source to tell them apart")
    return made


def _over(subject: Subject, steps: Sequence[int]) -> list[Subject]:
    """The subject at each of these numbers of steps."""
    if len(steps) < 2 or subject.kind == "pictures" or "steps" in subject.given:
        return [subject.called_with(steps=next(iter(steps), None))]
    return [replace(subject.called_with(steps=count), label=f"{subject.label}@{count}") for count in steps]


def _find(text: str, base: str) -> Subject:
    head, _, query = text.partition("?")
    label, equals, source = head.partition("=")
    label, source = (label, source) if equals else ("", head)
    given = _given(query, text)
    subject = _recognise(source, base)
    label = label or subject.label
    check_label(label, r"[\w.+-]+")
    return replace(subject, label=label, settings=_overridden(subject.settings, given), given=tuple(given))


def check_label(label: str, allowed: str = r"[\w.+@-]+") -> None:
    """Raise ``SubjectError`` for a label that cannot be the name of a folder; ``@`` is that of ``label@steps``."""
    if not re.fullmatch(allowed, label) or not label.strip("."):
        raise SubjectError(f"a label names files, so {label!r} may hold letters, digits, and . _ + -, not dots alone; write label=source")


def _recognise(source: str, base: str) -> Subject:
    path = Path(source).expanduser()
    # of "." and "..", too
    name = Path(os.path.abspath(path)).name or "model"
    if source in PIPELINES:
        return Subject(source, source, "pipeline", EMBEDDED if source == "shapes" else Settings())
    if source.startswith("lora:") or path.suffix == ".safetensors" or (path / LORA_WEIGHTS).is_file():
        if not base:
            raise SubjectError(f"{source!r} is an adapter; name the model that it goes on with --base")
        under = _find(base, "")
        label = name.removesuffix(".safetensors").removeprefix("lora:")
        return Subject(label, under.source, "lora", under.settings, source.removeprefix("lora:"))
    run = path if (path / "pipeline").is_dir() else path.parent
    if (run / "config.yaml").is_file() and (run / "pipeline" / "model_index.json").is_file() and path in (run, run / "pipeline"):
        config = _config(run)
        train = str(config.get("data", {}).get("train", ""))
        return Subject(run.resolve().name, str(run / "pipeline"), "run", _settings_of(config), train=train)
    if (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file():
        raise SubjectError(f"the run {source!r} has no pipeline yet: it is written when the run ends")
    if (path / "model_index.json").is_file():
        return Subject(name, source, "pipeline")
    if path.is_dir():
        if any(file.suffix.lower() in PICTURES for file in path.rglob("*")):
            return Subject(name, source, "pictures")
        raise SubjectError(f"{source!r} holds neither a diffusers pipeline (model_index.json), a finished run, an adapter, nor pictures")
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise SubjectError(f"no model or picture folder {source!r}; give a folder, a hub id like 'owner/name', or {' or '.join(PIPELINES)}")
    return Subject(name, source, "pipeline")


def _config(run: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SubjectError(f"{run / 'config.yaml'} cannot be read: {error}") from error
    parts = [found.get(name) or {} for name in ("model", "sampling", "teacher", "data")] if isinstance(found, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise SubjectError(f"{run / 'config.yaml'} is no run's configuration: it wants sections with settings")
    return {name: part for name, part in found.items() if part is not None}


def _settings_of(config: dict[str, Any]) -> Settings:
    """How a run evaluated itself is how its pipeline is called."""
    model, sampling = config.get("model", {}), config.get("sampling", {})
    sd3 = "T5" if model.get("t5", True) else ""
    # the options exist for SD3 alone, and a run of SDXL leaves them at their defaults
    options = {"max_sequence_length": model["max_sequence_length"]} if model.get("max_sequence_length", 256) not in (0, 256) else {}
    absent = () if sd3 else ("text_encoder_3", "tokenizer_3")
    guidance = float(sampling.get("guidance", 1.0))
    size = {side: model.get(side) or None for side in ("height", "width")}
    return Settings(sampling.get("steps"), guidance, **size, options=options, absent=absent)


def _made_from(subject: Subject) -> Subject | None:
    """The base of a run, drawn as the run's config says; None for anything else."""
    if subject.kind != "run":
        return None
    config = _config(Path(subject.source).parent)
    source, settings = str(config.get("model", {}).get("source", "")), _settings_of(config)
    if teacher := config.get("teacher"):
        # a distillation is compared with its teacher at full length
        source = teacher.get("source") or source
        settings = replace(settings, steps=int(teacher["steps"]), guidance=float(teacher["guidance"]))
    return replace(_recognise(source, ""), settings=settings)


def _given(query: str, text: str) -> dict[str, Any]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, strict_parsing=True)
    except ValueError:
        raise SubjectError(f"behind the question mark of {text!r} stand name=value pairs joined by &, such as steps=4&guidance=1") from None
    return {name: _number(value) for name, value in pairs}


def _number(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=str)
    except (json.JSONDecodeError, RecursionError):
        return value


def _overridden(settings: Settings, given: dict[str, Any]) -> Settings:
    own = {name: given[name] for name in ("steps", "guidance", "height", "width") if name in given}
    rest = {name: value for name, value in given.items() if name not in own}
    return replace(settings, **own, options={**settings.options, **rest})
