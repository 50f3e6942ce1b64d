"""EAGLE-3 in training: its SFT objective, and both stages through the command."""

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from draftopd.command import CONFIG_DIR
from draftopd.objectives.rows import Rows


def test_the_sft_objective_by_hand():
    """Weight 0.8^(k - 1); rows whose token the draft vocabulary lacks are left out; soft cross-entropy's gradient."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        objective = instantiate(compose("fit", overrides=["objective=soft_cross_entropy"]).objective)
    text = torch.tensor([0, -1, 1])
    zeros = torch.zeros(3).long()
    rows = Rows(text, text, torch.tensor([1, 2, 3]), zeros + 3, zeros, zeros, zeros + 3)
    (weights,) = objective.denominators(rows).values()
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 0.64]), atol=1e-5, rtol=0)
    draft, target = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    (loss,) = objective.numerators(draft, target.log_softmax(-1), rows).values()
    (gradient,) = torch.autograd.grad(loss.sum(), draft)
    soft = -(target.softmax(-1) * F.log_softmax(draft, -1)).sum(-1)
    (expected,) = torch.autograd.grad((soft * weights).sum(), draft)
    torch.testing.assert_close(gradient, expected)
