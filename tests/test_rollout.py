import pytest
import torch
from gaussian_world import gaussian_policy

from genrl import seeds
from genrl.chain import CpsChain, Guidance, OdeChain, RenoiseChain, SdeChain
from genrl.path import start, to_x0
from genrl.policy import ACTOR
from genrl.precision import Precision
from genrl.rollout import denoise, replay, rollout
from genrl.types import Conditioning, Prompt

GRID = (1.0, 0.9, 0.75, 0.5, 0.0)


def draw(chain, samples, chunk=64, record=(), policy=None, guidance=1.0):
    policy = policy or gaussian_policy({ACTOR: (0.5, 0.8)})
    count = len(samples)
    cond = Conditioning(torch.zeros(count, 1, 1), torch.zeros(count, 1))
    prompts = [Prompt("")] * count
    return rollout(
        policy,
        chain,
        prompts,
        cond,
        role=ACTOR,
        key=(7, 0, 3),
        samples=samples,
        groups=samples,
        chunk=chunk,
        record=record,
        guidance=guidance,
    )


@pytest.mark.parametrize("chain", [OdeChain(GRID), SdeChain(GRID), CpsChain(GRID), RenoiseChain(GRID)])
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


@pytest.mark.parametrize("storage", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("guidance", [1.0, 4.5, Guidance(4.5, 0.6, 0.95)])
@pytest.mark.parametrize("chain", [SdeChain(GRID), CpsChain(GRID), SdeChain(GRID, window=(1, 2))])
def test_a_replay_sees_what_sampling_saw(chain, guidance, storage):
    """Whatever format states are kept in: the log-probability is that of the rounded state, and the chain goes on from it."""
    policy = gaussian_policy({ACTOR: (0.5, 0.8)})
    policy.precision = Precision(storage=storage)
    seen = draw(chain, [3, 5, 6], record=("states", "log_probs"), policy=policy, guidance=guidance)
    states, recorded = seen.recorded["states"], seen.recorded["log_probs"]
    assert states.dtype == policy.precision.dtype("storage") and recorded.shape == (3, 4)
    for k in range(4):
        if chain.law(k).std == 0:
            assert (recorded[:, k] == 0).all()
            continue
        again = replay(policy, chain, k, states, seen.x0, seen.cond, role=ACTOR, guidance=guidance)
        assert (again - recorded[:, k]).abs().max() <= 1e-6
        assert (recorded[:, k] - recorded[0, k]).abs().max() > 1e-4, "samples differ"


def test_a_replay_has_the_gradient_of_the_density():
    chain, policy = SdeChain(GRID), gaussian_policy({ACTOR: (0.5, 0.8)})
    seen = draw(chain, [3, 5], record=("states",), policy=policy)
    states = seen.recorded["states"]
    replay(policy, chain, 2, states, seen.x0, seen.cond, role=ACTOR).sum().backward()
    (mean, std) = policy.parameters(ACTOR)
    found = mean.grad.item()
    with torch.no_grad():
        values = []
        for moved in (0.501, 0.499):
            mean.fill_(moved)
            values.append(replay(policy, chain, 2, states, seen.x0, seen.cond, role=ACTOR).double().sum().item())
    assert found == pytest.approx((values[0] - values[1]) / 0.002, rel=0.02) and std.grad is not None
