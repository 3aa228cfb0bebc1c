import pytest
import torch
from gaussian_world import gaussian_policy

from genrl.chain import CpsChain, OdeChain, SdeChain
from genrl.losses.clipped_ratio import ClippedRatio
from genrl.policy import ACTOR, REF
from genrl.rollout import rollout
from genrl.types import Batch, Conditioning, Prompt

GRID = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)


def drawn(policy, chain, count=64):
    cond = Conditioning(torch.zeros(count, 1, 1), torch.zeros(count, 1))
    order = range(count)
    seen = rollout(
        policy,
        chain,
        [Prompt("")] * count,
        cond,
        role=ACTOR,
        key=(1,),
        samples=order,
        groups=[k // 8 for k in order],
        record=("states", "log_probs"),
    )
    reward = seen.x0.flatten(1).mean(1)
    group_reward = reward.view(-1, 8).mean(1).repeat_interleave(8)
    signal = {**seen.recorded, "reward": reward, "group_reward": group_reward, "valid": torch.ones(count, dtype=torch.bool)}
    return Batch(seen.group, seen.sample, seen.x0, seen.cond, signal, (0, 1))


def policy_of(mean=0.5, ref=0.5):
    return gaussian_policy({ACTOR: (mean, 0.8), REF: (ref, 0.8)})


@pytest.mark.parametrize("chain", [SdeChain(GRID), CpsChain(GRID), SdeChain(GRID, window=(2,))])
def test_before_anything_is_learned_the_ratio_is_one(chain):
    policy = policy_of()
    batch, loss = drawn(policy, chain), ClippedRatio(chain)
    output = loss(policy, batch)
    assert output.metrics["policy/ratio_off_one"] < 1e-6 and output.metrics["policy/clipped"] == 0
    # and the loss is minus the mean advantage, which within groups is none
    assert abs(output.loss.item()) < 1e-6
    output.loss.backward()
    # samples with larger pictures are better: the mean must rise
    assert policy.parameters(ACTOR)[0].grad < 0


def test_the_clipped_objective_by_hand():
    chain = SdeChain(GRID, window=(2,))
    policy = policy_of()
    batch = drawn(policy, chain)
    policy.parameters(ACTOR)[0].data.fill_(0.6)
    loss = ClippedRatio(chain, clip=0.01)
    output = loss(policy, batch)
    from genrl.rollout import replay

    now = replay(policy, chain, 2, batch.signal["states"], batch.x0, batch.cond, role=ACTOR)
    ratio = (now - batch.signal["log_probs"][:, 2]).exp()
    advantage = batch.signal["reward"] - batch.signal["group_reward"]
    best = torch.where(advantage > 0, ratio.clamp(max=1.01), ratio.clamp(min=0.99))
    assert output.loss.item() == pytest.approx(-(best * advantage).mean().item(), rel=1e-5)
    assert 0.1 < output.metrics["policy/clipped"] < 1


def test_what_cannot_be_scored_teaches_nothing():
    chain, policy = SdeChain(GRID, window=(2,)), policy_of()
    batch = drawn(policy, chain, 16)
    batch.signal["valid"][:8] = False
    half = ClippedRatio(chain)(policy, batch).loss
    rest = ClippedRatio(chain)(policy, batch.index(torch.arange(8, 16))).loss
    assert half.item() == pytest.approx(rest.item(), abs=1e-7)


def test_the_divergence_is_that_of_two_normal_laws():
    chain, policy = SdeChain(GRID, window=(1,)), policy_of(0.5, 0.2)
    batch = drawn(policy, chain)
    output = ClippedRatio(chain, beta=1.0)(policy, batch)
    x, law = batch.signal["states"][:, 1], chain.law(1)
    ours, theirs = (law.mean(x, policy.velocity(x, GRID[1], batch.cond, role)) for role in (ACTOR, REF))
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(ours, law.std), torch.distributions.Normal(theirs, law.std))
    assert output.metrics["policy/kl"].item() == pytest.approx(exact.mean().item(), rel=1e-4) and exact.mean() > 1e-4


def test_it_learns_what_is_rewarded():
    """Reward is the mean of the picture: rounds of drawing and one step each raise it, and the KL term holds it back."""
    ends = []
    for beta in (0.0, 10.0):
        policy, chain = policy_of(), SdeChain(GRID)
        optimizer = torch.optim.Adam(policy.parameters(ACTOR)[:1], lr=0.02)
        loss = ClippedRatio(chain, clip=1.0, beta=beta)
        for _ in range(20):
            batch = drawn(policy, chain, 128)
            optimizer.zero_grad()
            loss(policy, batch).loss.backward()
            optimizer.step()
        ends.append(policy.parameters(ACTOR)[0].item())
    assert ends[0] > 0.7 and ends[1] < ends[0] - 0.05


def test_bad_settings():
    with pytest.raises(ValueError, match="OdeChain is deterministic"):
        ClippedRatio(OdeChain(GRID))
    with pytest.raises(ValueError, match="clip range"):
        ClippedRatio(SdeChain(GRID), clip=0.0)
