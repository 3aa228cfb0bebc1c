"""The format: what goes in comes out, and nothing that comes in crashes it."""

import base64
import io
import json
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genrl.remote import wire
from genrl.reward import About, RewardError

LIMIT = 10**6
HEADER = {"version": 1, "method": "score", "shape": [1, 3, 4, 4], "encoding": "raw", "prompts": ["a"], "metadata": [{}]}
texts = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def requests(draw: st.DrawFn) -> wire.Request:
    method = draw(st.sampled_from(wire.METHODS))
    count = draw(st.integers(1, 3))
    shape = (count * (2 if method == "compare" else 1), 3, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    prompts = draw(st.lists(texts, min_size=count, max_size=count))
    metadata = draw(st.lists(st.dictionaries(texts, values, max_size=3), min_size=count, max_size=count))
    return wire.Request(method, images, prompts, metadata)


def same(a: wire.Request, b: wire.Request) -> bool:
    return torch.equal(a.images, b.images) and (a.method, a.prompts, a.metadata) == (b.method, b.prompts, b.metadata)


def body(encoding: str = "raw", pixels: bytes = bytes(48), **changes: object) -> bytes:
    """A request of one 4x4 picture, with some of the header changed; None takes a key away."""
    header = HEADER | {"encoding": encoding} | changes
    return packed({key: value for key, value in header.items() if value is not None}, pixels)


def packed(header: dict[str, object], pixels: bytes) -> bytes:
    head = json.dumps(header).encode()
    return struct.pack("<I", len(head)) + head + pixels


def png(mode: str = "RGB", size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format="PNG")
    return buffer.getvalue()


@given(requests(), st.sampled_from(wire.ENCODINGS), st.booleans())
def test_a_request_comes_back(request_: wire.Request, encoding: str, writable: bool):
    sent = wire.encode_request(request_, encoding)
    back = wire.decode_request(bytearray(sent) if writable else sent, LIMIT)
    assert same(back, request_)
    assert back.images.is_contiguous()  # a convolution may sum another layout in another order


@given(requests())
def test_json_says_the_same(request_: wire.Request):
    pictures = [base64.b64encode(wire._png(Image.fromarray(one.permute(1, 2, 0).numpy()))).decode() for one in request_.images]
    sent = json.dumps({"prompts": request_.prompts, "metadata": request_.metadata, "images": pictures}).encode()
    assert same(wire.decode_json_request(sent, request_.method, LIMIT), request_)


@given(st.lists(st.floats(width=32, allow_infinity=False), min_size=1, max_size=5))
def test_scores_come_back_bit_by_bit(scores: list[float]):
    sent = torch.tensor(scores)
    back, errors = wire.decode_response(wire.encode_response(sent), len(scores))
    assert torch.equal(back.nan_to_num(7e30), sent.nan_to_num(7e30)) and len(errors) == sent.isnan().sum()


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_in_words(data: bytes):
    for parse in (
        lambda: wire.decode_request(data, LIMIT),
        lambda: wire.decode_json_request(data, "score", LIMIT),
        lambda: wire.decode_response(data, 2),
        lambda: wire.decode_request(struct.pack("<I", len(data)) + data, LIMIT),
    ):
        with pytest.raises(wire.WireError):
            parse()


@given(requests(), st.sampled_from(wire.ENCODINGS), st.data())
def test_damaged_requests_raise_nothing_else(request_: wire.Request, encoding: str, data: st.DataObject):
    sent = bytearray(wire.encode_request(request_, encoding))
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    del sent[data.draw(st.integers(0, len(sent))) :]
    try:
        wire.decode_request(sent, LIMIT)
    except wire.WireError as error:
        assert str(error)


@given(st.dictionaries(st.sampled_from(["version", "method", "shape", "encoding", "prompts", "metadata", "sizes", "x"]), values))
def test_headers_of_any_json_raise_nothing_else(header: dict[str, object]):
    as_png = {"encoding": "png", "sizes": [len(png())]}
    for sent in (packed(header, bytes(48)), packed(HEADER | header, bytes(48)), packed(HEADER | as_png | header, png())):
        try:
            assert wire.decode_request(sent, LIMIT).images.shape == (1, 3, 4, 4)
        except wire.WireError as error:
            assert str(error)


def test_the_smallest_request_passes():
    assert wire.decode_request(body(), LIMIT).prompts == ["a"]
    assert wire.decode_request(body("png", png(), sizes=[len(png())]), LIMIT).images.shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the body has 0 bytes"),
        (struct.pack("<I", 2**32 - 1) + b"{}", "should have 4294967295 bytes, and 2 follow"),
        (struct.pack("<I", 9) + b'"\xff"      ', "the header is not JSON"),
        (struct.pack("<I", 100000) + b"[" * 100000, "the header is not JSON"),
        (struct.pack("<I", 2) + b"[]", "must be a JSON object; got list"),
        (body(version=2), "version must be 1; got 2"),
        (body(version=True), "version must be 1; got True"),
        (body(method="train"), "method must be score or compare"),
        (body(encoding="jpeg"), "encoding must be raw or png"),
        (body(shape=[1, 4, 4, 4]), r"shape must be \[B, 3, H, W\]"),
        (body(shape=[0, 3, 4, 4]), r"shape must be \[B, 3, H, W\]"),
        (body(shape=[1, 3, 4.0, 4]), r"shape must be \[B, 3, H, W\]"),
        (body(shape=[1, 3, 10**9, 1]), "sides of at most 16384"),
        (body(shape=[1, 3, 1000, 1000]), "more than the 1000000 allowed; send fewer"),
        (body(pixels=bytes(47)), "47 bytes of pixels follow"),
        (body(prompts=["a", "b"]), "prompts must be texts, one per picture"),
        (body(prompts=[1]), "prompts must be texts"),
        (body(method="compare"), "one per pair; there are 1 pictures"),
        (body(metadata=None), "the header lacks metadata"),
        (body(metadata=[1]), "metadata must be 1 objects"),
        (body(metadata=[{"x": math.nan}]), "NaN is not JSON"),
        (body(extra=1), "unknown keys: 'extra'"),
        (body("png", b"no picture", sizes=[10]), "picture 0 is not a PNG"),
        (body("png", png(), sizes=[5]), "sizes must be 1 lengths"),
        (body("png", png()[:45], sizes=[45]), "picture 0 is a broken PNG"),
        (body("png", png("RGBA"), sizes=[len(png("RGBA"))]), "8-bit RGB PNG; its mode is RGBA"),
        (body("png", png(size=(8, 4)), sizes=[len(png(size=(8, 4)))]), "picture 0 is 8x4, not 4x4"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, says: str):
    with pytest.raises(wire.WireError, match=says):
        wire.decode_request(data, LIMIT)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>", "not JSON"),
        ({"version": 3, "scores": [1, 2]}, "version must be 1"),
        ({"version": 1}, '"scores"'),
        ({"version": 1, "scores": [1]}, "holds 1 scores; 2 were asked for"),
        ({"version": 1, "scores": [1, True]}, "numbers or null"),
        ({"version": 1, "scores": [1, "2"]}, "numbers or null"),
        ({"version": 1, "scores": [1, 10**400]}, "too large"),
        ({"version": 1, "scores": [1, 2], "errors": [None]}, "a list of 2"),
    ],
)
def test_answers_are_read_strictly(answer: object, says: str):
    with pytest.raises(wire.WireError, match=says):
        wire.decode_response(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), 2)


def test_an_error_of_one_picture_is_nan():
    answer = {"version": 1, "scores": [1, 2, None, 1e300], "errors": [None, "no face found", None, None]}
    scores, errors = wire.decode_response(json.dumps(answer).encode(), 4)
    assert scores[0] == 1 and scores[1:].isnan().all() and errors == ["no face found"]


@pytest.mark.parametrize(("metadata", "key"), [({"tags": {1, 2}}, "tags"), ({"score": math.nan}, "score"), ({3: "x"}, "3")])
def test_metadata_that_json_cannot_hold_is_named(metadata: dict, key: str):
    with pytest.raises(RewardError, match=rf"metadata '?{key}'? \(.*cannot go to a reward in another process"):
        wire.encode_request(wire.Request("score", torch.zeros(1, 3, 2, 2, dtype=torch.uint8), ["a"], [metadata]))


@pytest.mark.parametrize("shape", [(1, 4, 2, 2), (3, 2, 2), (2, 3, 2, 2)])
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...]):
    with pytest.raises(RewardError, match=r"images must be|got 2 images"):
        wire.encode_request(wire.Request("score", torch.zeros(shape, dtype=torch.uint8), ["a"], [{}]))


@pytest.mark.parametrize(
    "said", [About(), About("pairwise", ("a",), False, True, (-math.inf, 1.0), 26.0, ("w",), "MIT", golden=(("x", "y", 1.0, 0.1),))]
)
def test_about_comes_back(said: About):
    sent = json.dumps(wire.about_to_json(said), allow_nan=False)
    assert wire.about_from_json(json.loads(sent) | {"from_the_future": 1}) == said


@pytest.mark.parametrize("said", [None, {"kind": "odd"}, {"bounds": [1]}, {"bounds": "x"}, {"metadata": "key"}])
def test_a_malformed_about_is_refused(said: object):
    with pytest.raises(wire.WireError, match="about"):
        wire.about_from_json(said)
