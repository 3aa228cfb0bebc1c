"""Prompts become embeddings once, are found again where nothing changed, and are as long as the longest of them."""

import os
import shutil

import pytest
import torch
from tiny_models import PROMPTS, load, velocity

from genrl.config import Speed
from genrl.models import _embeddings
from genrl.models._source import ModelError
from genrl.models.sd3 import SD3


@pytest.fixture
def own(kind, folder, tmp_path):
    """A copy of the pipeline that a test may change, and a cache that does not exist yet."""
    shutil.copytree(folder, tmp_path / "model")
    return str(tmp_path / "model"), Speed(embeddings=str(tmp_path / "embeddings"))


def read_encoders(model):
    return model.pipeline.text_encoder is not None


def same(a, b):
    return torch.equal(a.embeds, b.embeds) and torch.equal(a.pooled, b.pooled)


def test_prompts_are_encoded_once(kind, own):
    source, speed = own
    expected = load(kind, source)
    first, again = load(kind, source, speed=speed), load(kind, source, speed=speed)
    for model, read in ((first, True), (again, False)):
        assert same(model.encode(PROMPTS), expected.encode(PROMPTS)) and same(model.unconditional, expected.unconditional)
        assert read_encoders(model) == read
        assert torch.equal(velocity(model), velocity(expected))
    assert not same(again.encode(PROMPTS[::-1]), expected.encode(PROMPTS)), "another order is another set"
    assert read_encoders(again)
    again.release_encoders()
    assert same(again.encode(PROMPTS), expected.encode(PROMPTS))
    with pytest.raises(ModelError, match="released"):
        again.encode(["a"])


def test_embeddings_of_another_model_or_option_are_not_taken(kind, own, tmp_path):
    source, speed = own
    load(kind, source, speed=speed).encode(PROMPTS)
    files = sorted(os.listdir(speed.embeddings))
    assert len(files) == 1 and not files[0].endswith(".tmp")

    def misses(**options):
        model = load(kind, source, speed=speed, **options)
        model.encode(PROMPTS)
        return read_encoders(model)

    assert not misses()
    if kind is SD3:
        assert misses(max_sequence_length=32) and misses(t5=False)
    weights = next(path for path in (tmp_path / "model" / "text_encoder").iterdir() if path.suffix == ".safetensors")
    os.utime(weights, ns=(1, 1))
    assert misses()


def test_a_broken_file_is_written_again(kind, own, caplog):
    source, speed = own
    expected = load(kind, source, speed=speed).encode(PROMPTS)
    (path,) = (os.path.join(speed.embeddings, name) for name in os.listdir(speed.embeddings))
    with open(path, "r+b") as file:
        file.truncate(100)
    assert same(load(kind, source, speed=speed).encode(PROMPTS), expected)
    assert "cannot be read" in caplog.text and "encoded again" in caplog.text
    again = load(kind, source, speed=speed)
    assert same(again.encode(PROMPTS), expected) and not read_encoders(again)


def test_a_model_of_the_hub_is_told_by_its_commit(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: asked.append((a, k)) or "/cache/snapshots/0a1b/model_index.json")
    assert _embeddings.fingerprint("owner/name", None, "main") == "0a1b"
    assert asked == [(("owner/name", "model_index.json"), {"revision": "main"})]


# -- length of T5


def test_a_cut_to_the_prompts_is_that_length(sd3):
    long = "a red circle a red circle a red"
    cut, named = SD3(sd3, max_sequence_length=0), SD3(sd3, max_sequence_length=16)
    assert len(cut.pipeline.tokenizer_3(long).input_ids) == 9
    prompts = [PROMPTS[0], long]
    assert same(cut.encode(prompts), named.encode(prompts)) and cut.chosen["max_sequence_length"] == 16
    assert same(cut.unconditional, named.unconditional) and same(cut.encode(["a"]), named.encode(["a"])), "the same for all that follows"
    assert cut.unconditional.embeds.shape[1:] == cut.embed_shape


def test_a_cut_wants_prompts_and_t5(sd3):
    with pytest.raises(ModelError, match="encode them before"):
        _ = SD3(sd3, max_sequence_length=0).unconditional
    with pytest.raises(ModelError, match="there is no T5: name the number"):
        SD3(sd3, max_sequence_length=0, t5=False)


def test_very_long_prompts_are_cut_where_diffusers_cuts_them(sd3):
    model = SD3(sd3, max_sequence_length=0)
    assert model._length_of(["a " * 600]) == 512 and model._length_of(["a"]) == 8
