"""Frozen vision encoders for a pixel discriminator (``genrl.discriminator.Backbone``): SAM, DINOv2, and a small one that ships inside.

Flash-DMD names SAM's encoder and says neither which size nor which levels. ADM, whose heads it takes, taps layers 3, 6, 9 and 12 (by
secondary descriptions), which makes it ViT-B: the four blocks of SAM that attend globally. DINOv2 and its taps are SenseFlow's.
Images of another size are resampled to what the encoder takes, also to another shape: real and generated ones alike (ours).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from genrl.models import weightless
from genrl.models._source import ModelError, folder_of, unloadable

# of ImageNet; SAM's own (123.675, 116.28, 103.53) and (58.395, 57.12, 57.375) are these on the scale to 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# of four pixels: their sum, and what differs between columns, between rows, and crosswise
HAAR = ((1.0, 1.0, 1.0, 1.0), (1.0, -1.0, 1.0, -1.0), (1.0, 1.0, -1.0, -1.0), (1.0, -1.0, -1.0, 1.0))
SPREAD = (1.2, 0.31, 0.096)
"""Standard deviations of a Haar pyramid's bands, coarse to fine, over pictures of the shapes world in [-1, 1]."""


class _Frozen(nn.Module):
    """What the encoders share: the size they take and the numbers they are normalised by. ``train`` leaves them evaluating."""

    widths: tuple[int, ...]
    sizes: tuple[int, ...]

    def __init__(self, size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD):
        super().__init__()
        self.size = size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> _Frozen:
        return super().train(False)

    def prepared(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] as the encoder takes them, ``[B, 3, size, size]`` float32; differentiable."""
        images = images.float()
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return (images - self.mean) / self.std


class _Transformer(_Frozen):
    """The blocks of a ViT up to the last tap; their raw outputs are the maps."""

    def __init__(self, blocks: nn.ModuleList, taps: Sequence[int], width: int, size: int, patch: int, checkpointing: bool):
        super().__init__(size)
        if not taps or list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] < len(blocks):
            raise ModelError(f"taps are ascending numbers of blocks, and this encoder has 0 to {len(blocks) - 1}; got {list(taps)}")
        if size % patch:
            raise ModelError(f"this encoder takes multiples of {patch} pixels; got {size}")
        self.blocks = blocks[: taps[-1] + 1]
        self.taps, self.side, self.checkpointing = tuple(taps), size // patch, checkpointing
        self.widths, self.sizes = (width,) * len(taps), (self.side,) * len(taps)

    def tapped(self, h: Tensor) -> list[Tensor]:
        taken = []
        for index, block in enumerate(self.blocks):
            again = self.checkpointing and h.requires_grad
            h = checkpoint(block, h, use_reentrant=False, preserve_rng_state=False) if again else block(h)
            if index in self.taps:
                taken.append(h)
        return taken


class SamBackbone(_Transformer):
    """The image encoder of Segment Anything (arXiv 2304.02643): raw outputs of blocks, without the neck, ``[B, width, h, w]``.

    Args:
        source: folder or hub id of a SAM of transformers, whole or its vision model alone.
        taps: blocks, from 0; none given takes those that attend globally, which are 2, 5, 8 and 11 of ViT-B.
        size: pixels a side that it is fed, a multiple of its patch; 0 takes the 1024 it was trained at. At another size its position
            embeddings are interpolated (ours): 512 costs a quarter, and how much worse it sees there has not been measured.
        checkpointing: keep only the input of each block and compute it again on the way back.
        dtype: of the encoder; bfloat16 halves its memory. Normalisation of the pixels is float32.

    Raises:
        ModelError: nothing there, no SAM, taps it has not, or a size it cannot take.
    """

    def __init__(
        self,
        source: str = "facebook/sam-vit-base",
        taps: Sequence[int] = (),
        size: int = 0,
        checkpointing: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        from transformers import SamModel, SamVisionModel

        encoder = _pretrained(source, {"sam": SamModel, "sam_vision_model": SamVisionModel}, dtype).vision_encoder
        config = encoder.config
        size = size or config.image_size
        super().__init__(encoder.layers, taps or config.global_attn_indexes, config.hidden_size, size, config.patch_size, checkpointing)
        self.patches, self.position = encoder.patch_embed, encoder.pos_embed
        self.requires_grad_(False).eval()
        if size != config.image_size:
            self.patches.image_size = (size, size)  # it refuses others; the relative positions interpolate themselves
            if self.position is not None:
                grid = self.position.data.float().permute(0, 3, 1, 2)
                grid = F.interpolate(grid, (self.side, self.side), mode="bicubic", antialias=self.side < grid.shape[-1])
                self.position.data = grid.permute(0, 2, 3, 1).to(dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        h = self.patches(self.prepared(images).to(self.patches.projection.weight.dtype))
        if self.position is not None:
            h = h + self.position
        return tuple(tokens.permute(0, 3, 1, 2) for tokens in self.tapped(h))


class DinoBackbone(_Transformer):
    """DINOv2 (arXiv 2304.07193): raw outputs of blocks, the class token dropped, ``[B, width, h, w]``.

    Args:
        source: folder or hub id of a DINOv2 of transformers.
        taps: blocks, from 0; the default are SenseFlow's for the large one.
        size: pixels a side that it is fed; the nearest multiple of its patch is taken. 0 takes its own (518 for those published).
            It interpolates its position embeddings itself.
        checkpointing, dtype: as for ``SamBackbone``.

    Raises:
        ModelError: nothing there, no DINOv2, or taps it has not.
    """

    def __init__(
        self,
        source: str = "facebook/dinov2-large",
        taps: Sequence[int] = (2, 5, 8, 10, 14, 19, 23),
        size: int = 0,
        checkpointing: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        from transformers import Dinov2Model

        model = _pretrained(source, {"dinov2": Dinov2Model}, dtype)
        config = model.config
        patch = config.patch_size
        size = max(1, round((size or config.image_size) / patch)) * patch
        super().__init__(model.encoder.layer, taps, config.hidden_size, size, patch, checkpointing)
        self.embeddings = model.embeddings
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tokens = self.tapped(self.embeddings(self.prepared(images)))
        return tuple(t[:, 1:].transpose(1, 2).unflatten(2, (self.side, self.side)) for t in tokens)


class ShapesBackbone(_Frozen):
    """For the shapes world: a Haar pyramid of the pixels, then the three blocks of the vision tower of one of its proxies (ours).

    The tower cuts 64 x 64 pixels into 4 x 4 patches and learned to match pictures with captions. It sees what is where and in which
    colour, ``[B, 48, 4, 4]`` per block, but neither edges nor texture, where few-step students fail first. So the first tap
    is no network but two levels of Haar wavelets, ``[B, 48, 16, 16]``: all of the pixels in another basis, each band brought to a spread
    near 1 over the world's own pictures. With it heads learn within some fifty steps to tell pictures from slightly blurred ones; on the
    tower alone, and with plain pixels or unscaled bands, they were at chance after twice as many: edges drown in the areas between them.

    Args:
        member: of the five proxies. One that is also a reward would judge twice.

    Raises:
        ValueError: no such member; FileNotFoundError: it has not been trained.
    """

    def __init__(self, member: int = 4):
        super().__init__(64, (0.5,) * 3, (0.5,) * 3)  # images * 2 - 1, as the proxies take them
        # models import no world: it is looked up by name, as rewards are. A copy, for the proxy itself is everybody's
        self.tower = copy.deepcopy(import_module("genrl.worlds.shapes.proxies").load_proxy(member).clip.visual)
        self.haar: Tensor
        self.register_buffer("haar", torch.tensor(HAAR) / 2, persistent=False)
        layers, width = self.tower.transformer.layers, self.tower.transformer.width
        self.widths, self.sizes = (48, *[width] * layers), (16, *[self.tower.grid_size[0]] * layers)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images = self.prepared(images)
        maps = self.tower.forward_intermediates(images, intermediates_only=True)["image_intermediates"]
        return (self.pyramid(images), *maps)

    def pyramid(self, images: Tensor) -> Tensor:
        """Haar bands ``[B, 3 + 9 + 36, H/4, W/4]`` of images in [-1, 1], coarse to fine."""
        half, fine = self._halved(images)
        low, middle = self._halved(half)
        bands = (low, middle, F.pixel_unshuffle(fine, 2))
        return torch.cat([band / spread for band, spread in zip(bands, SPREAD, strict=True)], dim=1)

    def _halved(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fours = F.pixel_unshuffle(images, 2).unflatten(1, (-1, 4))
        bands = torch.einsum("bckhw,lk->blchw", fours, self.haar)
        return bands[:, 0], bands[:, 1:].flatten(1, 2)


BACKBONES: dict[str, type[_Frozen]] = {"sam": SamBackbone, "dinov2": DinoBackbone, "shapes": ShapesBackbone}


def check_backbone(name: str, source: str = "") -> None:
    """What can be said of a backbone without loading it, so that a run fails early. Whether a hub id exists is not looked up.

    Raises:
        ValueError: unknown name, or a source for one that has none; ModelError: the source is a folder that is not there, or no model.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BACKBONES)}"
        raise ValueError(f"no discriminator backbone {name!r}; {hint}")
    if source and name == "shapes":
        raise ValueError(f"the backbone 'shapes' ships inside the package and takes no source; got {source!r}")
    if source:
        _folder(source)


def load_backbone(name: str, source: str = "", **options: Any) -> _Frozen:
    """A backbone by name: ``sam``, ``dinov2`` or ``shapes``, frozen, on the CPU. ``source`` "" takes its own; ``options`` are its class's.

    Raises:
        ValueError: see ``check_backbone``; ModelError: what is there cannot be loaded or used as that encoder.
    """
    check_backbone(name, source)
    return BACKBONES[name](**({"source": source} if source else {}), **options)


def _folder(source: str) -> str:
    """The source with its home directory written out; a folder must be there and be a model's, a hub id is let pass."""
    try:
        folder = folder_of(source)
    except ModelError:
        raise ModelError(f"no folder {source!r} of an encoder; give one that transformers reads, or a hub id like 'owner/name'") from None
    if folder and not (folder / "config.json").is_file():
        raise ModelError(f"{source!r} has no config.json; give the folder that a transformers model was saved in")
    return str(folder or source)


def _pretrained(source: str, kinds: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The model of a folder or hub id, by the class for the type that its config names."""
    from transformers import PreTrainedConfig

    place, wanted = _folder(source), " or ".join(kinds)
    try:
        found = PreTrainedConfig.get_config_dict(place)[0].get("model_type")
        if found not in kinds:  # transformers would load it all the same, and make up what it does not find
            raise ModelError(f"{source!r} is of type {found!r}; this backbone takes {wanted}")
        if how := weightless():
            with torch.device(how.device):
                return kinds[found](kinds[found].config_class.from_pretrained(place)).to(dtype)
        model, report = kinds[found].from_pretrained(place, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except ModelError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise unloadable(source, wanted, error) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{source!r} lacks {len(missing)} tensors of {wanted}, {missing[0]!r} among them; was it saved whole?")
    return model
