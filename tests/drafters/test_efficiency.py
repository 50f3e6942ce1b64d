"""What saves memory or time on GPUs changes no result: held against the plain float32 path."""

import copy
import multiprocessing
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from benchmarks.memory import cost
from benchmarks.objectives import NAMES, shipped
from torch import Tensor

from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.drafters.base import Drafter
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.objectives.base import Distillation
from draftopd.objectives.chunked import DraftSide, TargetSide, chunked_loss
from draftopd.objectives.divergences import forward_kl
from draftopd.objectives.draft_opd import DraftOPD
from draftopd.objectives.rows import Rows, flatten
from draftopd.target.head import Head
from draftopd.target.model import Target
from draftopd.trace import ReplayBatch, collate
from draftopd.training.module import DraftModule
from pair import EAGLE_LAYERS, PROMPTS

KINDS = ["dflash", "dspark", "dflash2", "eagle3"]


@pytest.fixture(scope="module")
def batch(target: Target, eager_drafter: DFlash) -> ReplayBatch:
    results = rollout(target, eager_drafter, PROMPTS, Decoding(max_new_tokens=24))
    return target.replay(collate([r.trace for r in results]), EAGLE_LAYERS)


def new_drafter(target: Target, kind: str) -> Drafter:
    torch.manual_seed(4)
    drafter: Drafter
    if kind == "dflash":
        drafter = DFlash(target.shape, num_layers=2, block_size=5, layer_ids=EAGLE_LAYERS)
    elif kind == "dspark":
        drafter = DSpark(target.shape, num_layers=2, block_size=5, markov_rank=6, layer_ids=EAGLE_LAYERS)
    elif kind == "dflash2":
        drafter = DFlash2(target.shape, num_layers=2, block_size=5, selector_rank=6, layer_ids=EAGLE_LAYERS)
    else:
        drafter = Eagle3(target.shape, block_size=5, layer_ids=EAGLE_LAYERS)
    drafter.initialise(target.head)
    return drafter


def loss_and_gradients(module: DraftModule, batch: ReplayBatch) -> dict[str, Tensor]:
    module.train()
    module.zero_grad()
    value = module.loss(batch)
    (2 * value).backward()
    return {"loss": value.detach(), **{name: p.grad.clone() for name, p in module.drafter.named_parameters()}}


def plain(target: Target, kind: str, batch: ReplayBatch, objective: str = "draft_opd", **options) -> dict[str, Tensor]:
    module = DraftModule(target, new_drafter(target, kind), shipped(objective), torch.optim.SGD, **options)
    return loss_and_gradients(module, batch)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_have_the_gradients_of_all_logits_at_once(name: str, target: Target, batch: ReplayBatch):
    """Of the hidden states and of a head of the drafter's own, whatever the loss is multiplied with later."""
    objective, rows, head = shipped(name), flatten(batch, None), target.head()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(rows), head.weight.shape[1], generator=generator).requires_grad_()
    weight = (head.weight + torch.randn(head.weight.shape, generator=generator)).requires_grad_()
    states = batch.target_hidden[batch.valid]
    coefficients = {name: torch.tensor(0.3 * i) for i, name in enumerate(objective.coefficients, start=1)}

    def whole() -> Tensor:
        numerators = objective.numerators(hidden @ weight.T, head(states).log_softmax(-1), rows)
        return torch.stack([coefficients[name] * value.sum() for name, value in numerators.items()]).sum()

    expected = torch.autograd.grad(2.5 * whole(), [hidden, weight])
    draft, verified = DraftSide(lambda x: x @ weight.T, hidden, [weight]), TargetSide(head, states)
    for chunk_rows in (9, 1000):
        value, _ = chunked_loss(objective, rows, draft, verified, coefficients, chunk_rows)
        torch.testing.assert_close(value, whole(), rtol=1e-5, atol=1e-5)
        got = torch.autograd.grad(2.5 * value, [hidden, weight])
        for ours, theirs in zip(got, expected, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


OPTIONS = [
    {"chunk_rows": 16},
    {"gradient_checkpointing": True},
    {"attention": "flex_attention"},
    pytest.param({"torch_compile": "aot_eager"}, marks=pytest.mark.slow),  # compilers take seconds
    pytest.param({"torch_compile": True}, marks=pytest.mark.slow),
    pytest.param(
        {"torch_compile": "aot_eager", "gradient_checkpointing": True, "attention": "flex_attention", "chunk_rows": 16},
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("kind", KINDS)
def test_options_change_neither_loss_nor_gradients(monkeypatch, target: Target, batch: ReplayBatch, kind: str, options):
    # torch refuses gradients of flex attention on CPUs, though its reference implementation has them
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    expected, got = plain(target, kind, batch), plain(target, kind, batch, **options)
    assert expected["fc.weight"].abs().max() > 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_torch_compile_has_the_backend_that_is_named(target: Target, batch: ReplayBatch):
    """Compiled or not, weights keep their names."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    got, expected = plain(target, "dflash", batch, torch_compile=backend), plain(target, "dflash", batch)
    assert graphs
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("bf16-true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(target: Target, batch: ReplayBatch, kind: str, precision: str):
    """Loss within 2 %, the gradient of every weight within 10 % of its norm."""
    expected = plain(target, kind, batch)
    plugin = L.Trainer(precision=precision, accelerator="cpu", logger=False, barebones=True).precision_plugin
    module = DraftModule(copy.deepcopy(target), new_drafter(target, kind), shipped("draft_opd"), torch.optim.SGD)
    module = plugin.convert_module(module)
    with plugin.train_step_context():
        got = loss_and_gradients(module, plugin.convert_input(batch))
    assert got["fc.weight"].dtype == (torch.float32 if precision == "bf16-mixed" else torch.bfloat16)
    for name, value in expected.items():
        error = (got[name] - value).norm() / value.norm()
        assert 0 < error < (0.02 if name == "loss" else 0.1), f"{name}: {error:.3f}"


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_keeps_less(target: Target, batch: ReplayBatch, kind: str):
    saved = []
    for on in (False, True):
        drafter, storages = new_drafter(target, kind), {}
        drafter.gradient_checkpointing = on

        def keep(tensor: Tensor, storages=storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            drafter(batch, target.embed)
        saved.append(sum(tensor.untyped_storage().nbytes() for tensor in storages.values()))
    assert saved[1] < 0.6 * saved[0]


def test_an_unknown_attention_is_refused(target: Target):
    with pytest.raises(DraftError, match="must be sdpa or flex_attention"):
        DraftModule(target, new_drafter(target, "dflash"), shipped("draft_opd"), torch.optim.SGD, attention="flash")


def test_flex_attention_is_refused_on_a_cpu(command, capsys):
    assert command("experiment=smoke/sft", "module.attention=flex_attention", "logger=none") == 2
    assert "module.attention=flex_attention needs a GPU" in capsys.readouterr().err


def peak_and_gradient(name: str, chunk_rows: int, result: Path) -> None:
    """Bytes that the loss of 1,024 rows over 151,936 tokens adds to what this process held, and its gradient."""
    torch.set_num_threads(1)
    rows, slots, size, draw = 1024, 8, 16, torch.Generator().manual_seed(0)
    slot, block = torch.arange(rows) % slots + 1, torch.arange(rows) // slots
    accepted = torch.randint(0, slots + 1, (rows,), generator=draw)[block]
    draft, text = torch.randint(0, 151_936, (2, rows), generator=draw)
    some = Rows(draft, text, slot, accepted, block, block // 16, 16 - block % 16)
    hidden, states = torch.randn(2, rows, size, generator=draw)
    head, objective = Head(torch.randn(151_936, size, generator=draw)), shipped(name)
    coefficients = {term: 1 / weights.sum() for term, weights in objective.denominators(some).items()}
    sides = DraftSide(head, hidden.requires_grad_()), TargetSide(head, states)
    spent = cost(lambda: chunked_loss(objective, some, *sides, coefficients, chunk_rows)[0].backward())
    torch.save({"bytes": spent["peak_bytes"], "gradient": hidden.grad}, result)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_entropy", "draft_opd"])
def test_chunks_take_a_quarter_of_the_memory(name: str, tmp_path: Path):
    found = []
    for chunk_rows in (1024, 128):
        arguments = (name, chunk_rows, tmp_path / f"{chunk_rows}.pt")
        process = multiprocessing.get_context("spawn").Process(target=peak_and_gradient, args=arguments)
        process.start()
        process.join()
        found.append(torch.load(arguments[2]))
    whole, chunked = found
    assert chunked["bytes"] <= whole["bytes"] / 4
    assert (chunked["gradient"] - whole["gradient"]).abs().max() <= 1e-5 * whole["gradient"].abs().max()


def test_terms_without_rows(target: Target, batch: ReplayBatch):
    """The other term trains as if it were the only one; without any row nothing does."""
    accepted = replace(batch, accepted=batch.drafted)
    objectives = {"both": DraftOPD(), "only": Distillation(forward_kl, decay=None)}
    modules = {k: DraftModule(target, new_drafter(target, "dflash"), o, torch.optim.SGD) for k, o in objectives.items()}
    got, expected = (loss_and_gradients(module, accepted) for module in modules.values())
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value / 2)
    nothing = replace(batch, accepted=batch.drafted * 0, drafted=batch.drafted * 0)
    assert not any(value.any() for value in loss_and_gradients(modules["both"], nothing).values())
