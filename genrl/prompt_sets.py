"""Prompt sets to judge models on, by name: our own, public ones, or a file of one's own; and which of their prompts were trained on."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genrl.data import BUILT_IN, INDEX, PromptError, load_prompts
from genrl.prompts.public import PUBLIC, Public, digest, table
from genrl.types import Prompt

OWN = ("mini", "compose", "text", "shapes")
OWN_LICENCE = "CC0-1.0"


@dataclass(frozen=True)
class Collection:
    """A prompt set and where it comes from. ``sha256`` is that of the texts, one a line, of the prompts that are here."""

    name: str
    prompts: list[Prompt]
    licence: str
    source: str
    sha256: str


@dataclass(frozen=True)
class Listed:
    """A set that is known by name: ``count`` prompts in ``categories`` (0: it has none), and where it comes from."""

    name: str
    count: int
    categories: int
    licence: str
    source: str

    def __str__(self) -> str:
        return f"{self.name:<14}{self.count:>6} prompts  {self.licence}; {self.source}"


def all_sets() -> list[Listed]:
    """Every set that ``prompt_set`` knows by name: our own first."""
    found = []
    for name in OWN:
        prompts = load_prompts(name)
        found.append(Listed(name, len(prompts), len({prompt.category for prompt in prompts}), OWN_LICENCE, "in the package"))
    for name, public in PUBLIC.items():
        found.append(Listed(name, public.count, public.categories, public.licence, _origin(public)))
    return found


def prompt_set(name_or_path: str | Path, path: str | Path | None = None, limit: int = 0) -> Collection:
    """A prompt set.

    Args:
        name_or_path: a name of ``all_sets`` or of ``genrl.data``, or a file: ``.txt``, ``.jsonl``, ``.csv``, ``.tsv``.
        path: of a public set, its file or folder on disk; without it, the hub is asked.
        limit: so many prompts at most, evenly spread over the set, so that categories remain; 0 takes all.

    Raises:
        PromptError: an unknown name, a file that is missing or no prompt set, a download that failed, a public set that is not what was
            published, or a limit below 0.
    """
    name = str(name_or_path)
    if path is not None and name not in PUBLIC:
        raise PromptError(f"only a public set is read from a file beside its name ({', '.join(PUBLIC)}); got {name!r} and {str(path)!r}")
    if name in BUILT_IN:
        prompts, licence, source = load_prompts(name), OWN_LICENCE, f"genrl, {name}"
    elif name in PUBLIC:
        public = PUBLIC[name]
        found = _download(name, public) if path is None else _local(name, public, Path(path).expanduser())
        prompts, licence = _read(name, public, found), public.licence
        _check(name, public, prompts, str(path or f"hub dataset {public.hub}"))
        source = f"{path or 'hub dataset ' + public.hub}, published at {public.where}"
    else:
        prompts, licence, source = _own_file(name), "not stated", name
        name = Path(name).stem
    return part(Collection(name, prompts, licence, source, digest(prompts)), limit)


def part(collection: Collection, limit: int) -> Collection:
    """``limit`` prompts of a collection; see ``spread``.

    Raises:
        PromptError: a limit below 0.
    """
    if limit < 0:
        raise PromptError(f"the limit of prompts must be 0 (all of them) or more, got {limit}")
    prompts = spread(collection.prompts, limit)
    return replace(collection, prompts=prompts, sha256=digest(prompts))


def spread(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """``limit`` prompts at equal distances, the first among them; all if ``limit`` is 0 or there are no more."""
    total = len(prompts)
    return list(prompts) if not 0 < limit < total else [prompts[index * total // limit] for index in range(limit)]


def leaks(train: Sequence[Prompt], judged: Sequence[Prompt]) -> list[str]:
    """Texts of ``judged`` that were trained on, each once: equal after Unicode's NFKC, without case, punctuation and surplus space."""
    seen = {normalised(prompt.text) for prompt in train}
    return list(dict.fromkeys(prompt.text for prompt in judged if normalised(prompt.text) in seen))


def normalised(text: str) -> str:
    """``' “Dog’s  House”!'`` -> ``"dogs house"``. Apostrophes join, other punctuation parts; a text of punctuation alone stays."""
    text = unicodedata.normalize("NFKC", text).casefold()
    joined = re.sub("['’‘ʼ]", "", text)
    words = "".join(" " if unicodedata.category(letter).startswith("P") else letter for letter in joined)
    return " ".join(words.split()) or " ".join(text.split())


def _own_file(name: str) -> list[Prompt]:
    path = Path(name).expanduser()
    if path.is_file() and path.suffix in (".csv", ".tsv"):
        prompts = table(path)
        if not prompts:
            raise PromptError(f"{path}: no prompts in it; write at least one")
        return prompts
    if path.is_file() and path.name == INDEX:
        # it has a line for each picture, and several of a prompt
        once: dict[str, Prompt] = {}
        for prompt in load_prompts(path):
            once.setdefault(prompt.text, prompt)
        return list(once.values())
    if path.is_file():
        return load_prompts(path)
    known = [*OWN, *PUBLIC]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known sets: {', '.join(known)}"
    raise PromptError(f"no prompt file {name!r}, nor a prompt set of that name; {hint}")


def _origin(public: Public) -> str:
    return f"hub dataset {public.hub}" if public.hub else f"to be downloaded: {public.where}"


def _by_hand(name: str, public: Public) -> str:
    what = public.files[0] if public.one_file else f"the folder with {', '.join(public.files[:2])}{', ...' * (len(public.files) > 2)}"
    return f"download {what} from {public.where} and give it: --prompts {name} --prompt-file PATH"


def _download(name: str, public: Public) -> list[Path]:
    """The files, from the hub or its cache."""
    if not public.hub:
        raise PromptError(f"the hub has no copy of {name} that is read here; {_by_hand(name, public)}")
    files = [f"{public.folder}/{file}" if public.folder else file for file in public.files]
    try:
        from huggingface_hub import hf_hub_download

        return [Path(hf_hub_download(public.hub, file, repo_type="dataset")) for file in files]
    except Exception as error:  # its errors have no common class: network, offline mode, gated, moved, an old version
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}".splitlines()[0][:160]
        raise PromptError(f"{name} could not be had from the hub dataset {public.hub} ({reason}); {_by_hand(name, public)}") from error


def _local(name: str, public: Public, path: Path) -> list[Path]:
    """The files at a path that was given: the one file under any name, or the folder of them."""
    if path.is_file() and public.one_file:
        return [path]
    if not path.is_dir():
        what = "is a file, and the set is a folder" if path.is_file() else "is not there"
        raise PromptError(f"{path} {what}; {_by_hand(name, public)}")
    found = [sorted(path.glob(file)) for file in public.files]
    if missing := [file for file, paths in zip(public.files, found, strict=True) if not paths]:
        raise PromptError(f"{path} holds no {', '.join(missing)}; {_by_hand(name, public)}")
    return [file for paths in found for file in paths]


def _read(name: str, public: Public, files: list[Path]) -> list[Prompt]:
    try:
        return public.read(files)
    except (AttributeError, LookupError, TypeError, UnicodeDecodeError) as error:
        raise PromptError(f"{name}: {files[0]} is not made as it was published ({type(error).__name__}: {error})") from error


def _check(name: str, public: Public, prompts: Sequence[Prompt], where: str) -> None:
    """Raise PromptError where the prompts are not those that were published."""
    accept = f"to judge on it all the same, write it as a .txt, .jsonl, .csv or .tsv file and give that path instead of {name!r}"
    if len(prompts) != public.count:
        raise PromptError(f"{name}: {where} holds {len(prompts)} prompts, published were {public.count}; {accept}")
    if empty := [index for index, prompt in enumerate(prompts) if not prompt.text]:
        raise PromptError(f"{name}: {where} holds empty prompts, the first of them number {empty[0]}; {accept}")
    if public.sha256 and (found := digest(prompts)) != public.sha256:
        raise PromptError(f"{name}: the prompts of {where} have the SHA-256 {found}, those published {public.sha256}; {accept}")
