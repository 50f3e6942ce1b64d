"""The linter: what is wrong with a published drafter, before an engine serves it badly without a word.

Names and conventions that the checks rest on: vLLM `qwen3_dflash.py`, SGLang `models/dflash.py`, z-lab `model.py`,
speculators 0.9, transformers 5.
"""

import torch
from torch import Tensor

from draftopd.exchange import reads, weights
from draftopd.exchange.findings import Findings
from draftopd.exchange.folder import Contents
from draftopd.exchange.sheet import Layout, Sheet
from draftopd.exchange.speculators import SPECULATORS
from draftopd.exchange.zlab import ZLAB
from draftopd.target import Target

LAYOUTS = {layout.name: layout for layout in (ZLAB, SPECULATORS)}


def inspect(contents: Contents, findings: Findings, target: Target | None = None) -> tuple[Layout, Sheet] | None:
    """Adds every fault to `findings`; gives back layout and sheet where both can be told.

    Args:
        target: what the drafter is to draft for; without it nothing is compared with one.
    """
    config = contents.config
    layout = next((layout for layout in LAYOUTS.values() if layout.recognises(config)), None)
    if layout is None:
        kind = config.get("speculators_model_type") or config.get("architectures") or config.get("model_type")
        findings.error(
            f"{kind} is no DFlash drafter of z-lab's or speculators' layout", "not read here", "take another"
        )
        return None
    sheet = layout.parse(config, findings)
    if sheet is None:
        return None
    _vocabulary_sizes(sheet, findings)
    _layer_ids(sheet, findings)
    if findings.errors:
        return layout, sheet
    weights.check(contents, sheet, layout, findings)
    reads.check(contents.metadata, sheet.build("meta"), findings)
    if target is not None:
        _target(contents.tensors, sheet, target, findings)
    elif any(name in contents.tensors for name in weights.LENT if sheet.draft_vocab_size is None):
        findings.warning(
            "embedding or head in the file",
            "vLLM uses them, SGLang drops them, here the target's are lent",
            "compare them with the target's: give one",
        )
    return layout, sheet


def _vocabulary_sizes(sheet: Sheet, findings: Findings) -> None:
    draft, whole = sheet.draft_vocab_size, sheet.vocab_size
    if draft is not None and not (isinstance(draft, int) and 1 <= draft < whole):
        findings.error(f"draft_vocab_size {draft!r} beside vocab_size {whole}", "no engine can map it", "mend it")
    if not 0 <= sheet.mask_token_id < whole:
        findings.error(
            f"mask_token_id {sheet.mask_token_id} is outside the table of {whole} rows",
            "engines stop or read a row that is not there",
            "write the token that the drafter was trained with",
        )
    if sheet.block_size < 2:
        findings.error(
            f"block_size is {sheet.block_size}", "it counts the anchor: nothing would be drafted", "write 2 or more"
        )


def _layer_ids(sheet: Sheet, findings: Findings) -> None:
    ids, depth = list(sheet.layer_ids), sheet.target_layers
    if sorted(set(ids)) != ids:
        findings.error(
            f"layer ids {ids} do not rise",
            "vLLM and SGLang take each layer's features once, in the order of layers",
            "train with drafter.layer_ids that rise",
        )
    if depth is not None and ids[-1] >= depth:
        hint = " (is that the number of ids, as TorchSpec writes it?)" if depth == len(ids) else ""
        findings.error(
            f"layer id {ids[-1]} of a target of {depth} layers{hint}",
            "SGLang refuses, vLLM captures too few features",
            "write target_layer_ids as 0-based layer outputs, aux_hidden_state_layer_ids as these plus one",
        )
    elif depth is not None and ids[-1] == depth - 1:
        findings.warning(
            f"layer id {ids[-1]} is the target's last layer",
            "engines that capture before a layer, vLLM's first ones and speculators, cannot give its output",
            "train on earlier layers",
        )


def _target(tensors: dict[str, Tensor], sheet: Sheet, target: Target, findings: Findings) -> None:
    shape, useless = target.shape, "a drafter works with its own target only"
    facts = {
        "hidden_size": (sheet.hidden_size, shape.hidden_size),
        "vocab_size": (sheet.vocab_size, shape.vocab_size),
        "num_target_layers": (sheet.target_layers or shape.num_layers, shape.num_layers),
        "target fingerprint": (sheet.target_fingerprint or target.fingerprint, target.fingerprint),
    }
    for name, (ours, theirs) in facts.items():
        if ours != theirs:
            findings.error(
                f"{name} {ours}, the target's is {theirs}", useless, "give the target that it was trained for"
            )
    if max(sheet.layer_ids) >= shape.num_layers:
        findings.error(f"layer ids reach {max(sheet.layer_ids)} of {shape.num_layers} layers", useless, "mend the ids")
    if sheet.mask_token_id >= target.embed_rows:
        rows = target.embed_rows
        findings.error(
            f"mask_token_id {sheet.mask_token_id} is outside the target's {rows} rows", useless, "mend config.json"
        )
    if findings.errors:
        return
    head = target.model.get_output_embeddings().weight
    if sheet.draft_vocab_size is not None:
        head = head[(tensors["d2t"].long() + torch.arange(sheet.draft_vocab_size)).to(head.device)]
    for name, own in zip(weights.LENT, (target.model.get_input_embeddings().weight, head), strict=True):
        if name in tensors and not torch.allclose(tensors[name].float(), own.cpu().float(), rtol=1e-2, atol=1e-3):
            findings.error(
                f"{name} is not the target's",
                "vLLM uses it, SGLang drops it, here the target's is lent",
                "it was trained with an embedding or head of its own: not supported",
            )
