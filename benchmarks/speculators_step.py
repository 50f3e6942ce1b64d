"""Runs in the environment of vLLM's speculators: its own DFlash training step, on what `train_speculators.py` wrote.

    python speculators_step.py FOLDER ANSWER

FOLDER holds a drafter in speculators' layout, `inputs.safetensors` and `request.json`. The step is that of
`speculators.train.trainer.Trainer.train_epoch` in float32 (its `--hidden-states-dtype float32`, which makes autocast
idle): forward with loss and metrics, `zero_grad`, backward, clipping, the optimizer that `build_optimizers` makes. Two
things are set from outside, because speculators draws and reads them itself: `select_anchors` gives the anchors of the
inputs, and what it loads from the verifier (embedding, head, final norm) is copied from the inputs.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from speculators.losses import resolve_loss_config
from speculators.models.dflash import DFlashSpeculatorConfig, core
from speculators.train.optimizers import build_optimizers
from speculators.train.trainer import TrainerConfig


def main(folder: Path, answer: Path) -> None:
    request, given = json.loads((folder / "request.json").read_text()), load_file(folder / "inputs.safetensors")
    torch.set_num_threads(request["threads"])
    anchors = given.pop("anchors")
    core.select_anchors = lambda *_: (anchors, torch.ones_like(anchors, dtype=torch.bool))
    model = build(folder, given, request["attention"])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = {name: value[None] for name, value in given.items()}
    found = {}
    for loss in request["losses"]:
        model.load_state_dict(start)
        found[loss] = steps(model, inputs, loss, len(anchors), request)
    facts = {"speculators": version("speculators"), "torch": version("torch"), "transformers": version("transformers")}
    answer.write_text(json.dumps({"versions": facts, "losses": found}))


def build(folder: Path, given: dict[str, torch.Tensor], attention: str) -> torch.nn.Module:
    config = DFlashSpeculatorConfig.from_pretrained(folder)
    config.transformer_layer_config._attn_implementation = attention
    model = core.DFlashDraftModel(config)
    weights = load_file(folder / "model.safetensors")
    head = given.pop("head")
    lent = {"embed_tokens.weight": given.pop("embedding"), "verifier_norm.weight": given.pop("final_norm")}
    lent |= {"lm_head.weight": head, "verifier_lm_head.weight": head}
    model.load_state_dict(weights | lent)  # strict: every weight has a value and every value a place
    return model.train()


def steps(model: torch.nn.Module, inputs: dict[str, torch.Tensor], loss: str, anchors: int, request: dict) -> dict:
    """Seconds of each step, and of the first its loss and the norm of every gradient before clipping."""
    config = TrainerConfig(lr=request["lr"], num_epochs=1, save_path="", weight_decay=request["weight_decay"])
    (optimizer,) = build_optimizers(model, config)
    call = {
        "loss_config": resolve_loss_config(loss, "eager"),  # the fused ones want Triton
        "gamma": request["decay"],
        "max_anchors": anchors,
        "per_position_loss_weight": "fixed-exp-decay",
    }
    seconds, first = [], {}
    for _ in range(request["steps"]):
        begun = time.perf_counter()
        _, value, metrics = model(**inputs, **call)
        optimizer.zero_grad()
        value.backward()
        if not first:
            norms = {name: float(w.grad.norm()) for name, w in model.named_parameters() if w.grad is not None}
            first = {"loss": float(value.detach()), "rows": float(metrics["full_acc_total"]), "gradient_norms": norms}
        torch.nn.utils.clip_grad_norm_(model.parameters(), request["gradient_clip"])
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    return {**first, "seconds": seconds[1:]}  # the first makes the optimizer's state, and the norms above


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
