"""A precision that this processor has no products of is named before hours go by."""

import pytest
import torch

from runs import UNTIMED

STEP = ("experiment=smoke/sft", "budget.epochs=null", "budget.steps=1", "prompts.val=1", "test.prompts=0", *UNTIMED)


@pytest.mark.parametrize(("has_products", "warned"), [(False, True), (True, False)])
def test_bfloat16_on_a_processor_without_its_products(command, capsys, monkeypatch, has_products, warned):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_products)
    assert command(*STEP, "trainer.precision=bf16-mixed") == 0
    shown = capsys.readouterr()
    assert " ".join((shown.out + shown.err).split()).count("take trainer.precision=32-true") == int(warned)
