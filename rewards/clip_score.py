"""CLIPScore (arXiv 2104.08718), and the CLIP towers that its relatives share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrl.pixels import PromptMemory, best_device, longest_side, normalise, resize, shortest_side
from genrl.reward import About, RewardError

Geometry = Callable[[Tensor, int], Tensor]


class ClipScore:
    """Cosine of picture and prompt in a CLIP model, in [-1, 1]; 0.15 to 0.35 with the default model, 0.2 to 0.4 with a ViT-H/14.

    The paper's ``2.5 * max(cosine, 0)`` and the hundredfold of some libraries are left out: trainers use the cosine. Pictures have
    their shortest side resized (bicubic, antialiased) and the middle cut out; with open_clip whatever the model's own configuration
    says. Differentiable in the pixels.

    Args:
        model: hub id or folder of a transformers CLIP. For open_clip ``open_clip:ViT-B-32/laion2b_s34b_b79k``, where a checkpoint file
            may stand instead of the tag (``open_clip:ViT-B-32//data/my.pt``), or ``open_clip:local-dir:/folder``,
            ``open_clip:hf-hub:owner/name``.
        backend: ``transformers`` or ``open_clip``; ``auto`` is open_clip where ``model`` begins with it.
        processor: hub id or folder of the tokenizer, where it is not beside the weights (transformers only).
        device: ``auto`` is this process's GPU, or the CPU.
        dtype: what the towers compute in; cosines are always float32.
    """

    about = About(
        differentiable=True,
        bounds=(-1.0, 1.0),
        weights=("openai/clip-vit-large-patch14",),
        license="MIT",
        source="arXiv 2104.08718",
    )

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        backend: str = "auto",
        processor: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
    ):
        if backend == "auto":
            backend = "open_clip" if model.startswith("open_clip:") else "transformers"
        self.clip: Towers
        if backend == "transformers":
            self.clip = HubClip(model, processor, device, dtype)
        elif backend == "open_clip" and processor is None:
            self.clip = OpenClip(model.removeprefix("open_clip:"), device, dtype)
        elif backend == "open_clip":
            raise RewardError("an open_clip model brings its own tokenizer; leave `processor` out")
        else:
            raise RewardError(f"backend must be auto, transformers or open_clip; got {backend!r}")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        return self.clip.cosine(images, prompts)


class Towers(ABC):
    """Pictures and prompts as unit vectors of float32. A backend sets ``network``, ``texts`` and ``scale``, and embeds a picture.

    Args:
        device: see ``genrl.pixels.best_device``.
        dtype: what the towers compute in.
    """

    network: nn.Module
    texts: PromptMemory
    scale: float

    def __init__(self, device: str, dtype: str):
        self.device, self.dtype = best_device(device), float_type(dtype)

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Pictures to their projected embedding, not yet of unit length."""

    def pictures(self, images: Tensor) -> Tensor:
        """``[B, D]``."""
        return F.normalize(self.embed(images.to(self.device)).float(), dim=-1)

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (self.pictures(images) * self.texts(prompts)).sum(-1)


class HubClip(Towers):
    """A CLIP of transformers, with CLIP's preprocessing at the size that its configuration names.

    Args:
        model: hub id or folder.
        processor: the same for the tokenizer; None is ``model``.
        device, dtype: see ``Towers``.
        text: without it only the picture tower is kept.
        legacy_eos: the prompt's embedding is read at the highest token id, as models do whose configuration was written before
            the end token had its right number there. Equal to the other rule in CLIP's vocabulary, where the end token is the highest.
    """

    def __init__(
        self,
        model: str,
        processor: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        text: bool = True,
        legacy_eos: bool = False,
    ):
        super().__init__(device, dtype)
        with loading(model):
            from transformers import CLIPModel

            loaded: Any = CLIPModel.from_pretrained(model, dtype=self.dtype, output_loading_info=True)
            network, report = loaded
            complete(report["missing_keys"])
        if not text:
            del network.text_model, network.text_projection
        self.network: Any = network.to(self.device).eval().requires_grad_(False)
        self.size = network.config.vision_config.image_size
        if not text:
            return
        if legacy_eos:
            network.text_model.eos_token_id = 2
        with loading(processor or model):
            from transformers import AutoTokenizer

            self.tokenizer: Any = AutoTokenizer.from_pretrained(processor or model)
        self.scale = network.logit_scale.float().exp().item()
        self.texts = PromptMemory(self._read)

    def embed(self, images: Tensor) -> Tensor:
        pixels = normalise(shortest_side(images, self.size)).to(self.dtype)
        return projected(self.network.get_image_features(pixel_values=pixels))

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        length = self.network.config.text_config.max_position_embeddings
        told = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return told.input_ids.to(self.device)

    def _read(self, prompts: list[str]) -> Tensor:
        # no attention mask: attention is causal, so what is padded after the end token changes nothing
        return F.normalize(projected(self.network.get_text_features(input_ids=self.tokens(prompts))).float(), dim=-1)


class OpenClip(Towers):
    """A CLIP of open_clip, with the preprocessing that its configuration names.

    Args:
        model: ``architecture/tag``, ``architecture/path of a checkpoint``, ``local-dir:folder`` or ``hf-hub:owner/name``.
        device, dtype: see ``Towers``.
        geometry: how a picture comes to its size; None is what the configuration says.
    """

    def __init__(self, model: str, device: str = "auto", dtype: str = "float32", geometry: Geometry | None = None):
        super().__init__(device, dtype)
        name, _, weights = (model, "", None) if model.startswith(("local-dir:", "hf-hub:")) else model.partition("/")
        if weights == "":
            raise RewardError(f"open_clip model {model!r} names no weights; write open_clip:architecture/tag or architecture/file")
        with loading(model):
            import open_clip

            network = open_clip.create_model(name, pretrained=weights, require_pretrained=True, weights_only=True)
            self.tokenizer = open_clip.get_tokenizer(name)
            said = open_clip.get_model_preprocess_cfg(network)
        self.network: Any = network.to(self.device, self.dtype).eval().requires_grad_(False)
        self.scale = network.logit_scale.float().exp().item()
        self.mean, self.std = said["mean"], said["std"]
        self.size = said["size"] if isinstance(said["size"], int) else said["size"][0]
        self.geometry = geometry or self._geometry(model, said)
        self.texts = PromptMemory(self._read)

    @staticmethod
    def _geometry(model: str, said: Mapping[str, Any]) -> Geometry:
        known: dict[str, Geometry] = {"shortest": shortest_side, "longest": longest_side, "squash": lambda x, n: resize(x, n, n)}
        if said["interpolation"] != "bicubic" or said["resize_mode"] not in known:
            raise RewardError(f"open_clip model {model!r} resizes by {said['interpolation']}, {said['resize_mode']}; only bicubic is here")
        return known[said["resize_mode"]]

    def embed(self, images: Tensor) -> Tensor:
        return self.network.encode_image(normalise(self.geometry(images, self.size), self.mean, self.std).to(self.dtype))

    def _read(self, prompts: list[str]) -> Tensor:
        return F.normalize(self.network.encode_text(self.tokenizer(prompts).to(self.device)).float(), dim=-1)


def projected(output: Any) -> Tensor:
    """The projected embedding, which transformers 5 wraps."""
    return output if isinstance(output, Tensor) else output.pooler_output


def float_type(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise RewardError(f"dtype must be one of {', '.join(known)}; got {name!r}")
    return known[name]


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Whatever fails inside becomes a RewardError that names the weights and the way out."""
    try:
        yield
    except RewardError as error:
        raise RewardError(f"could not load {model!r}: {error}") from error
    except Exception as error:
        why = " ".join(str(error).split())
        raise RewardError(
            f"could not load {model!r}: {type(error).__name__}: {why}. It must be a hub id that can be reached or is in the cache; "
            "without a network give the path of a local copy"
        ) from error


def complete(missing: Sequence[str] | set[str], unexpected: Sequence[str] | set[str] = ()) -> None:
    """Weights that are not there would be random, and the score with them."""
    for what, keys in (("lacks", sorted(missing)), ("has beyond the model", sorted(unexpected))):
        if keys:
            raise RewardError(f"the checkpoint {what} {len(keys)} tensors: {', '.join(keys[:3])}, ...; these are other weights")


def weights_file(model: str, name: str) -> Path:
    """Published weights on this disk: ``model`` is the file, a folder that holds ``name``, or a hub id, which is downloaded."""
    path = Path(model).expanduser()
    if path.is_dir():
        path = path / name
    if path.is_file():
        return path
    if path.is_absolute() or model.count("/") != 1 or path.exists() or path.parent.is_dir():
        raise RewardError(f"no file {str(path)!r}; give a hub id, the weights themselves, or a folder that holds {name!r}")
    with loading(model):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(model, name))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or from a file of torch that holds nothing but tensors."""
    with loading(str(path)):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # of any type: what a foreign file makes torch raise shares no class
            raise RewardError(
                "it does not read as a file of tensors and nothing else, and foreign objects are not unpickled; convert it where you "
                "trust it with "
                "safetensors.torch.save_file(module.state_dict(), path)"
            ) from None
        return held.get("state_dict", held)
