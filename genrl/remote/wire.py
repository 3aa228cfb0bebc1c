"""What travels between a run and a reward elsewhere: pixels as bytes, the rest as JSON.

A request is 4 bytes with the length of a header (little-endian), the header, and the pixels::

    {"version": 1, "method": "score", "shape": [B, 3, H, W], "encoding": "raw", "prompts": [...], "metadata": [{...}, ...]}

``raw`` pixels are uint8 in that order; with ``png`` they are one PNG after the other, their lengths in ``sizes``. ``compare`` sends both
batches, the first before the second, as ``[2B, 3, H, W]``. Clients in other languages may send JSON instead:
``{"prompts": [...], "metadata": [...], "images": [PNG as base64, ...]}``.

The answer is ``{"version": 1, "scores": [number or null, ...], "errors": [null or text, ...]}``; null is a picture that could not be
scored. A failure as a whole is ``{"error": text}`` with a status of 400 or more.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genrl.pixels import to_pil
from genrl.reward import About, Kind, RewardError

VERSION = 1
METHODS = ("score", "compare")
ENCODINGS = ("raw", "png")
BINARY, JSON = "application/octet-stream", "application/json"
LONGEST_SIDE = 16384
_LENGTH = struct.Struct("<I")


class WireError(RewardError):
    """A body that is not what this module's first lines say."""


@dataclass(frozen=True)
class Request:
    """One call of a reward.

    Args:
        method: ``score`` or ``compare``.
        images: uint8 ``[B, 3, H, W]``; for ``compare`` ``[2B, 3, H, W]``, the first batch before the second.
        prompts: B.
        metadata: B.
    """

    method: str
    images: Tensor
    prompts: list[str]
    metadata: list[dict[str, Any]]


def encode_request(request: Request, encoding: str = "raw") -> bytes:
    """The request as bytes; raw pixels are copied once.

    Raises:
        RewardError: shapes do not fit, or metadata that JSON cannot hold.
    """
    images, count = request.images, len(request.prompts)
    pictures = count * (2 if request.method == "compare" else 1)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise RewardError(f"images must be [B, 3, H, W]; got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}")
    if len(images) != pictures or len(request.metadata) != count:
        raise RewardError(f"got {len(images)} images, {count} prompts and {len(request.metadata)} metadata; wanted {pictures} images")
    header: dict[str, Any] = {"version": VERSION, "method": request.method, "shape": list(images.shape), "encoding": encoding}
    header |= {"prompts": request.prompts, "metadata": [_jsonable(entry) for entry in request.metadata]}
    if encoding == "png":
        blocks: list[Any] = [_png(picture) for picture in to_pil(images.float() / 255)]
        header["sizes"] = [len(block) for block in blocks]
    else:
        blocks = [images.cpu().contiguous().numpy().data.cast("B")]
    head = json.dumps(header).encode()
    return b"".join([_LENGTH.pack(len(head)), head, *blocks])


def decode_request(body: bytes | bytearray, limit: int) -> Request:
    """A binary request; ``limit`` bounds the decoded pixels in bytes.

    Raises:
        WireError: the body is malformed; the message says where.
    """
    if len(body) < _LENGTH.size:
        raise WireError(f"the body has {len(body)} bytes; it begins with 4 for the length of the header")
    (length,) = _LENGTH.unpack_from(body)
    start = _LENGTH.size + length
    if start > len(body):
        raise WireError(f"the header should have {length} bytes, and {len(body) - _LENGTH.size} follow")
    header = _object(bytes(memoryview(body)[_LENGTH.size : start]), "the header")
    known = {"version", "method", "shape", "encoding", "prompts", "metadata"} | ({"sizes"} if header.get("encoding") == "png" else set())
    _keys(header, known, known, "the header")
    _version(header)
    for key, allowed in (("method", METHODS), ("encoding", ENCODINGS)):
        if header[key] not in allowed:
            raise WireError(f"{key} must be {' or '.join(allowed)}; got {header[key]!r:.80}")
    shape = _shape(header["shape"], limit)
    prompts, metadata = _texts(header, shape[0], header["method"])
    pixels = memoryview(body)[start:]
    if header["encoding"] == "raw":
        if len(pixels) != math.prod(shape):
            raise WireError(f"{len(pixels)} bytes of pixels follow the header; {shape} are {math.prod(shape)}")
        # a private, writable buffer is used in place
        whole = torch.frombuffer(body if isinstance(body, bytearray) else bytearray(body), dtype=torch.uint8, offset=start)
        return Request(header["method"], whole.view(shape), prompts, metadata)
    sizes = header["sizes"]
    if not isinstance(sizes, list) or not all(_is_count(size) for size in sizes) or len(sizes) != shape[0] or sum(sizes) != len(pixels):
        raise WireError(f"sizes must be {shape[0]} lengths that add up to the {len(pixels)} bytes that follow the header")
    ends = np.cumsum([0, *sizes])
    pictures = [bytes(pixels[a:b]) for a, b in itertools.pairwise(ends)]
    return Request(header["method"], _pictures(pictures, shape), prompts, metadata)


def decode_json_request(body: bytes | bytearray, method: str, limit: int) -> Request:
    """A request in JSON, for clients in other languages; as ``decode_request``."""
    found = _object(bytes(body), "the body")
    _keys(found, {"prompts", "images"}, {"version", "prompts", "metadata", "images"}, "the body")
    _version({"version": VERSION} | found)
    if not isinstance(found["images"], list) or not found["images"] or not all(isinstance(one, str) for one in found["images"]):
        raise WireError("images must be a list of PNGs in base64, at least one")
    try:
        pictures = [base64.b64decode(one, validate=True) for one in found["images"]]
    except ValueError as error:
        raise WireError(f"images must be base64: {error}") from None
    with _open(pictures[0], 0) as first:
        shape = _shape([len(pictures), 3, first.height, first.width], limit)
    entries = found["prompts"] if isinstance(found["prompts"], list) else []
    prompts, metadata = _texts({"metadata": [{} for _ in entries]} | found, shape[0], method)
    return Request(method, _pictures(pictures, shape), prompts, metadata)


def encode_response(scores: Tensor) -> bytes:
    """The answer to scores ``[B]``; a float32 arrives bit by bit."""
    values = [None if math.isnan(score) else score for score in scores.tolist()]
    errors = ["the reward could not score this picture" if value is None else None for value in values]
    return json.dumps({"version": VERSION, "scores": values, "errors": errors}).encode()


def decode_response(body: bytes, count: int) -> tuple[Tensor, list[str]]:
    """Scores ``[count]`` float32, NaN where there is none, and what was said about those.

    Raises:
        WireError: the body is malformed or of another length.
    """
    found = _object(body, "the answer")
    _version(found)
    scores, errors = found.get("scores"), found.get("errors", [None] * count)
    if not isinstance(scores, list) or not all(one is None or (isinstance(one, int | float) and one is not True) for one in scores):
        raise WireError('the answer must hold "scores", a list of numbers or null')
    if len(scores) != count:
        raise WireError(f"the answer holds {len(scores)} scores; {count} were asked for")
    if not isinstance(errors, list) or len(errors) != count or not all(one is None or isinstance(one, str) for one in errors):
        raise WireError(f'"errors" must be a list of {count}, null or text')
    try:
        values = [math.nan if one is None or why is not None else float(one) for one, why in zip(scores, errors, strict=True)]
    except OverflowError:
        raise WireError("a score is too large for a number") from None
    tensor = torch.tensor(values, dtype=torch.float64).float()
    return torch.where(tensor.isinf(), math.nan, tensor), [why for why in errors if why is not None]


def about_to_json(about: About) -> dict[str, Any]:
    """JSON has no infinity: such a bound travels as text."""
    bounds = about.bounds and tuple(value if math.isfinite(value) else str(value) for value in about.bounds)
    return asdict(about) | {"bounds": bounds}


def about_from_json(found: Any) -> About:
    """What a reward elsewhere says of itself; fields that only a newer version knows are left out."""
    if not isinstance(found, dict) or found.get("kind", "pointwise") not in get_args(Kind):
        raise WireError(f'"about" must be an object with a kind of {", ".join(get_args(Kind))}')
    given = {field.name: _tuples(found[field.name]) for field in fields(About) if field.name in found}
    keys = given.get("metadata", ())
    if not isinstance(keys, tuple) or not all(isinstance(key, str) for key in keys):
        raise WireError('"metadata" of "about" must be a list of keys')
    try:
        if given.get("bounds") is not None:
            low, high = map(float, given["bounds"])
            given["bounds"] = (low, high)
        return About(**given)
    except (TypeError, ValueError) as error:
        raise WireError(f'"about" is malformed: {error}') from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _jsonable(entry: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in entry.items():
        try:
            if not isinstance(key, str):
                raise TypeError(f"a key must be text, not {type(key).__name__}")
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RewardError(
                f"metadata {key!r} ({type(value).__name__}) cannot go to a reward in another process: {error}. "
                "Use text, numbers, lists and mappings"
            ) from None
    return dict(entry)


def parse_json(text: bytes, what: str) -> Any:
    """JSON, strictly; any failure is a ``WireError``."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what} is not JSON: {error}") from None


def _object(text: bytes, what: str) -> dict[str, Any]:
    found = parse_json(text, what)
    if not isinstance(found, dict):
        raise WireError(f"{what} must be a JSON object; got {type(found).__name__}")
    return found


def _keys(found: Mapping[str, Any], wanted: set[str], known: set[str], what: str) -> None:
    if missing := wanted - found.keys():
        raise WireError(f"{what} lacks {', '.join(sorted(missing))}")
    if odd := found.keys() - known:
        raise WireError(f"{what} has unknown keys: {', '.join(sorted(odd))[:200]!r}")


def _version(found: Mapping[str, Any]) -> None:
    if found.get("version") is True or found.get("version") != VERSION:
        raise WireError(f"version must be {VERSION}; got {found.get('version')!r:.80}. Install the same genrl on both sides")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _shape(shape: Any, limit: int) -> list[int]:
    if not isinstance(shape, list) or len(shape) != 4 or not all(map(_is_count, shape)) or shape[1] != 3 or max(shape[2:]) > LONGEST_SIDE:
        raise WireError(f"shape must be [B, 3, H, W] with sides of at most {LONGEST_SIDE}; got {shape!r:.80}")
    if math.prod(shape) > limit:
        raise WireError(f"{shape} pixels are {math.prod(shape)} bytes, more than the {limit} allowed; send fewer pictures at a time")
    return shape


def _texts(found: Mapping[str, Any], pictures: int, method: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Prompts and metadata, as many as there are pictures or pairs."""
    count, rest = divmod(pictures, 2 if method == "compare" else 1)
    prompts, metadata = found["prompts"], found["metadata"]
    if rest or not isinstance(prompts, list) or len(prompts) != count or not all(isinstance(one, str) for one in prompts):
        raise WireError(f"prompts must be texts, one per {'pair' if method == 'compare' else 'picture'}; there are {pictures} pictures")
    if not isinstance(metadata, list) or len(metadata) != count or not all(isinstance(one, dict) for one in metadata):
        raise WireError(f"metadata must be {count} objects, one per prompt")
    return prompts, metadata


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _open(data: bytes, number: int) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=["PNG"])
    except Exception as error:  # a decoder fed with foreign bytes raises whatever it likes
        raise WireError(f"picture {number} is not a PNG: {error!s:.200}") from None
    if picture.mode != "RGB":
        raise WireError(f"picture {number} must be an 8-bit RGB PNG; its mode is {picture.mode}")
    return picture


def _pictures(data: Sequence[bytes], shape: list[int]) -> Tensor:
    """uint8 ``shape``; the size of each is looked at before it is unpacked."""
    found = np.empty((shape[0], shape[2], shape[3], 3), np.uint8)
    for number, one in enumerate(data):
        with _open(one, number) as picture:
            if (picture.height, picture.width) != (shape[2], shape[3]):
                raise WireError(f"picture {number} is {picture.width}x{picture.height}, not {shape[3]}x{shape[2]} as the rest")
            try:
                found[number] = np.asarray(picture)
            except Exception as error:  # as above
                raise WireError(f"picture {number} is a broken PNG: {error!s:.200}") from None
    return torch.from_numpy(found).permute(0, 3, 1, 2).contiguous()
