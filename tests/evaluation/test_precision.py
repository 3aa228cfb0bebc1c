"""The precision report: what each format does to a ratio that should be 1."""

import pytest
import torch
from gaussian_world import gaussian_policy

from genrl.cli import main
from genrl.evaluation.precision import CAST, VARIANTS, report, words
from genrl.policy import ACTOR
from genrl.precision import Precision
from genrl.types import Conditioning


def lines(own=Precision(), **options):  # noqa: B008
    policy = gaussian_policy({ACTOR: (0.5, 0.8)})
    policy.model.sigmas = lambda steps: tuple(1 - k / steps for k in range(steps + 1))
    policy.precision = own
    found = report(policy, Conditioning(torch.zeros(6, 1, 1), torch.zeros(6, 1)), steps=5, **options)
    assert policy.precision == own, "formats are put back"
    return found


def test_only_states_that_sampling_never_saw_move_the_ratio():
    found = lines(guidance=(1.0, 4.5))
    assert [line.formats for line in found[: len(found) // 2]] == [next(iter(VARIANTS)), CAST, *list(VARIANTS)[1:]]
    for line in found:
        if line.formats == CAST:
            assert line.same_batch > 1e-4 and line.beyond > 0.5
        else:
            assert line.same_batch <= 1e-6 and line.half_batch <= 1e-6 and line.beyond == 0


def test_the_clip_range_decides_what_is_beyond():
    cast = next(line for line in lines(clip=10.0) if line.formats == CAST)
    assert cast.beyond == 0 and cast.same_batch > 1e-4


def test_states_already_in_16_bits_are_not_cast_again():
    assert CAST not in [line.formats for line in lines(Precision(storage="bf16"))]


def test_words_and_command(capsys):
    assert "bf16" in words(lines(), Precision(), 1e-4)
    main(["precision-report", "shapes", "a red circle", "--steps", "3", "--images", "2", "--guidance", "1"])
    printed = capsys.readouterr().out
    assert "clip range 0.0001" in printed and CAST in printed


def test_a_model_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        main(["precision-report", "./nowhere"])
    assert "no model folder" in capsys.readouterr().err
