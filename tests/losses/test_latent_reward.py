import pytest
import torch
from gaussian_world import gaussian_policy
from torch import nn
from torch.nn import functional as F

from genrl.critic import ValueNet, load_value, save_value
from genrl.losses.latent_reward import LATENT_REWARD, PairRanking, latent_score
from genrl.losses.noise import SigmaDensity
from genrl.policy import ACTOR, REF
from genrl.types import Batch, Conditioning


class Slope(nn.Module):
    """Score = gain * mean feature."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.1))

    def forward(self, features, sigma, pooled):
        return self.gain * features.flatten(1).mean(1)


def batch(x0, reward, group, valid=None):
    count = len(x0)
    signal = {"reward": reward, "valid": torch.ones(count, dtype=torch.bool) if valid is None else valid}
    cond = Conditioning(torch.zeros(count, 1, 1), torch.zeros(count, 1))
    return Batch(group, torch.arange(count), x0, cond, signal, (0, 1))


def policy():
    return gaussian_policy({ACTOR: (0.0, 1.0), REF: (0.0, 1.0)}, {LATENT_REWARD: Slope()})


def test_by_hand_with_two_prompts_and_one_that_cannot_be_scored():
    who, x0 = policy(), torch.randn(5, 1, 2, 2)
    reward, group = torch.tensor([1.0, 0.0, 0.5, 0.2, 9.0]), torch.tensor([0, 0, 1, 1, 1])
    valid = torch.tensor([True, True, True, True, False])
    one = batch(x0, reward, group, valid)
    margin, weight = PairRanking()._pairs(who, one)
    assert weight.count_nonzero() == 4 and weight[0, 1] == 1.0 and weight[2, 3] == pytest.approx(0.3)
    expected = (F.softplus(-margin[0, 1]) * 1.0 + F.softplus(-margin[2, 3]) * 0.3) / 1.3
    assert PairRanking()(who, one).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_prompts_samples_share_a_level():
    who, seen = policy(), []
    who.features = lambda x, sigma, cond, role: seen.append((sigma, role)) or x
    group = torch.tensor([0, 1, 0, 1, 2])
    PairRanking()(who, batch(torch.randn(5, 1, 2, 2), torch.rand(5), group))
    sigma, role = seen[0]
    assert role == REF and sigma[0] == sigma[2] and sigma[1] == sigma[3] and len(set(sigma.tolist())) == 3


def test_it_learns_to_rank_and_only_the_head_learns():
    """At high noise the features rise with the latent and the reward falls: the head must turn its sign round."""
    who, ranking = policy(), PairRanking(SigmaDensity(low=0.7, high=0.95))
    optimizer = torch.optim.Adam(who.parameters(LATENT_REWARD), lr=0.05)
    draw = torch.Generator().manual_seed(0)
    x0 = torch.randn(64, 1, 1, 1, generator=draw).expand(-1, 1, 2, 2).contiguous()
    one = batch(x0, -x0.flatten(1).mean(1), torch.arange(64) // 8)
    before = ranking.diagnose(who, one)["latent_reward/ranked_right"]
    for _ in range(60):
        optimizer.zero_grad()
        ranking(who, one).loss.backward()
        optimizer.step()
    assert before < 0.5 < ranking.diagnose(who, one)["latent_reward/ranked_right"]
    assert all(p.grad is None for p in who.parameters(ACTOR, REF))


def test_no_gradient_enters_the_features():
    who = policy()
    x = torch.randn(3, 1, 2, 2, requires_grad=True)
    latent_score(who, x, torch.full((3,), 0.8), Conditioning(torch.zeros(3, 1, 1), torch.zeros(3, 1))).sum().backward()
    assert x.grad is None and who.networks[LATENT_REWARD].gain.grad is not None


def test_a_head_is_read_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    head = ValueNet(4, 6, width=16, depth=1, endpoint=False)
    nn.init.normal_(head.head[-1].weight)
    save_value(head, tmp_path / "head.safetensors", model="somewhere")
    again = load_value(tmp_path / "head.safetensors")
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.9]), torch.randn(2, 6)
    assert torch.equal(head(*inputs), again(*inputs)) and not any(p.requires_grad for p in again.parameters())
    with pytest.raises(ValueError, match="no value network"):
        load_value(tmp_path / "none.safetensors")
