import pytest
import torch
from gaussian_world import gaussian_policy

from genrl import seeds
from genrl.chain import OdeChain, RenoiseChain
from genrl.path import start, to_x0
from genrl.policy import ACTOR
from genrl.rollout import denoise, rollout
from genrl.types import Conditioning, Prompt

GRID = (1.0, 0.9, 0.75, 0.5, 0.0)


def draw(chain, samples, chunk=64, record=()):
    policy = gaussian_policy({ACTOR: (0.5, 0.8)})
    count = len(samples)
    cond = Conditioning(torch.zeros(count, 1, 1), torch.zeros(count, 1))
    prompts = [Prompt("")] * count
    return rollout(policy, chain, prompts, cond, role=ACTOR, key=(7, 0, 3), samples=samples, groups=samples, chunk=chunk, record=record)


@pytest.mark.parametrize("chain", [OdeChain(GRID), RenoiseChain(GRID)])
def test_a_sample_is_the_same_in_any_chunk_and_company(chain):
    whole = draw(chain, [0, 1, 2, 3, 4])
    assert torch.allclose(whole.x0, draw(chain, [0, 1, 2, 3, 4], chunk=2).x0, atol=1e-6)
    assert torch.allclose(whole.x0[[4, 1]], draw(chain, [4, 1]).x0, atol=1e-6)
    assert whole.recorded == {}


def test_what_is_recorded_is_the_way():
    """States and predictions re-enter the chain: from any state, with its step's noise, the next one follows."""
    chain, policy = RenoiseChain(GRID), gaussian_policy({ACTOR: (0.5, 0.8)})
    seen = draw(chain, [3, 5], record=("states", "predictions"))
    states, predictions = seen.recorded["states"], seen.recorded["predictions"]
    assert states.shape == predictions.shape == (2, 4, 1, 2, 2)
    assert torch.equal(predictions[:, -1], seen.x0)
    assert torch.equal(states[:, 0], seeds.normal((7, 0, 3), [3, 5], (1, 2, 2)))
    for k in range(4):
        v = policy.velocity(states[:, k], GRID[k], seen.cond, ACTOR)
        assert torch.allclose(predictions[:, k], to_x0(states[:, k], v, GRID[k]), atol=1e-6)
        if k < 3:
            noise = seeds.normal((7, 0, 3, k), [3, 5], (1, 2, 2))
            assert torch.allclose(states[:, k + 1], (1 - GRID[k + 1]) * predictions[:, k] + GRID[k + 1] * noise, atol=1e-6)
    assert list(draw(chain, [3], record=("states",)).recorded) == ["states"]


def test_fresh_noise_differs_between_steps_and_samples():
    draws = [seeds.normal((7, 0, 3, k), [s], (4,)) for k in range(3) for s in range(3)] + [seeds.normal((7, 0, 3), [0], (4,))]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 10


def test_renoising_keeps_the_spread_that_predictions_lose():
    """Data N(0.5, 0.8^2): one prediction from pure noise has no spread at all; each renoised step brings some of it back."""
    few, one = draw(RenoiseChain(GRID), range(2000)).x0, draw(RenoiseChain((1.0, 0.0)), range(2000)).x0
    assert one.std() < 0.01 and one.mean().item() == pytest.approx(0.5, abs=0.01)
    assert few.mean().item() == pytest.approx(0.5, abs=0.03) and few.std() > 0.3


def test_a_stochastic_chain_asks_for_noise():
    policy = gaussian_policy({ACTOR: (0.5, 0.8)})
    x = start(torch.randn(2, 1, 2, 2), 1.0)
    with pytest.raises(ValueError, match="RenoiseChain is stochastic"):
        denoise(policy, RenoiseChain(GRID), x, Conditioning(torch.zeros(2, 1, 1), torch.zeros(2, 1)), role=ACTOR, guidance=1.0)
