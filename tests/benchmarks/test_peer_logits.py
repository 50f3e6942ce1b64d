"""Block logits beside those of other code, where transformers' own DFlash model stands for the others."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import peer_logits
from draftopd.checkpoints.to_transformers import to_transformers
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dspark import DSpark
from draftopd.target.model import Target
from pair import PROMPTS


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (1e-3, 1)])
def test_an_error_above_the_tolerance_fails(
    target: Target, eager_drafter: DFlash, monkeypatch: pytest.MonkeyPatch, capsys, error: float, code: int
):
    model = to_transformers(eager_drafter, target)
    head = eager_drafter.head(target.head)

    def ask(_args, layout: str, scratch: Path, _target_name: str):
        assert json.loads((scratch / layout / "config.json").read_text())
        inputs = load_file(scratch / "inputs.safetensors")
        answer = {}
        for i in range(2):
            tokens, features, anchors = (inputs[f"{name}.{i}"] for name in ("tokens", "features", "anchors"))
            blocks = []
            for anchor in anchors.tolist():
                block = torch.full((1, eager_drafter.block_size), eager_drafter.mask_token_id)
                block[:, 0] = tokens[anchor]
                out = model(
                    noise_embeds=target.embed(block),
                    context_hidden_states=features[None, :anchor],
                    position_ids=torch.arange(anchor + eager_drafter.block_size)[None],
                )
                blocks.append(head(out.last_hidden_state[:, 1:]))
            answer[f"logits.{i}"] = torch.cat(blocks).detach() + error
        return answer, "0"

    run = SimpleNamespace(target=target, drafter=eager_drafter, encoded=lambda _split, limit: PROMPTS[:limit])
    monkeypatch.setattr(peer_logits, "restore", lambda _checkpoint: run)
    monkeypatch.setattr(peer_logits, "ask", ask)
    words = ["any.ckpt", "--peer", "python", "--zlab", "model.py", "--texts", "2", "--tokens", "12", "--blocks", "3"]
    assert peer_logits.main(words) == code
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["blocks"] == 6
    for layout in ("speculators", "zlab"):
        assert report[layout]["difference"]["logits"] == pytest.approx(error, abs=1e-5)
        assert report[layout]["largest"]["logits"] > 1


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (1e-3, 1)])
def test_dspark_is_held_against_deepspec_and_so_is_its_confidence(
    target: Target, monkeypatch: pytest.MonkeyPatch, capsys, error: float, code: int
):
    torch.manual_seed(1)
    drafter = DSpark(target.shape, num_layers=1, block_size=4, markov_rank=6)
    run = SimpleNamespace(target=target, drafter=drafter, encoded=lambda _split, limit: PROMPTS[:limit])

    def ask(_args, layout: str, scratch: Path, _target_name: str):
        assert layout == "deepspec"
        answer = peer_logits.logits(run, load_file(scratch / "inputs.safetensors"), drafter.head(target.head))
        return {name: value + error * name.startswith("confidence") for name, value in answer.items()}, "0"

    monkeypatch.setattr(peer_logits, "restore", lambda _checkpoint: run)
    monkeypatch.setattr(peer_logits, "ask", ask)
    words = ["any.ckpt", "--peer", "python", "--texts", "1", "--tokens", "12", "--blocks", "2"]
    assert peer_logits.main([*words, "--deepspec", "DeepSpec"]) == code
    report = json.loads(capsys.readouterr().out.splitlines()[-1])["deepspec"]
    assert report["difference"] == {"confidence": pytest.approx(error, abs=1e-5), "logits": 0}
    with pytest.raises(SystemExit):
        peer_logits.main(words)
