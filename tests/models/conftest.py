"""Tiny random pipelines for the tests of adapters; a file that wants others has fixtures of its own."""

import pytest
from tiny_models import TINY
from tiny_sd3 import tiny_sd3

from genrl.models.sd3 import SD3
from genrl.models.sdxl import SDXL


@pytest.fixture(scope="module", params=[SD3, SDXL])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return str(TINY[kind](tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return str(tiny_sd3(tmp_path_factory.mktemp("sd3")))
