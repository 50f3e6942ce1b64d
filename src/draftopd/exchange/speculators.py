"""The layout of vLLM's speculators package for DFlash (version 0.9).

Its `aux_hidden_state_layer_ids` count the hidden states *before* a layer: ours plus one. Embedding and head are the
verifier's and stay out of the file; a reduced vocabulary brings `d2t`, `t2d` and the head's rows.
"""

from typing import Any

from draftopd.exchange import body
from draftopd.exchange.findings import Findings
from draftopd.exchange.sheet import Layout, Sheet

VERSION = "0.9.0"  # of the layout


def recognises(config: dict[str, Any]) -> bool:
    return config.get("speculators_model_type") == "dflash"


def compose(sheet: Sheet, dtype: str) -> dict[str, Any]:
    method = {"proposal_type": "greedy", "speculative_tokens": sheet.block_size - 1}
    verifier = {"name_or_path": sheet.target_name, "architectures": list(sheet.target_architectures)}
    return {
        "architectures": ["DFlashSpeculator"],
        "speculators_model_type": "dflash",
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": "dflash",
            "default_proposal_method": "greedy",
            "proposal_methods": [{**method, "verifier_accept_k": 1, "accept_tolerance": 0.0}],
            "verifier": verifier,
        },
        "transformer_layer_config": body.compose(sheet),
        "draft_vocab_size": sheet.draft_vocab_size or sheet.vocab_size,
        "block_size": sheet.block_size,
        "mask_token_id": sheet.mask_token_id,
        "aux_hidden_state_layer_ids": [i + 1 for i in sheet.layer_ids],
        "target_hidden_size": sheet.hidden_size,
        "sliding_window_non_causal": False,
        "sample_from_anchor": False,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "num_target_layers": sheet.target_layers,
        "target_fingerprint": sheet.target_fingerprint,
    }


def parse(config: dict[str, Any], findings: Findings) -> Sheet | None:
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, dict):
        findings.error("no transformer_layer_config", "vLLM and speculators refuse", "add the drafter's Qwen3 config")
        return None
    if config.get("sample_from_anchor"):
        findings.error("sample_from_anchor is set: a draft from the anchor's slot", "not built here", body.RETRAIN)
    layer = {"model_type": "qwen3", **layer}
    base, theta = body.parse(layer, findings), body.rope_theta(layer, findings)
    block = body.agreed(
        "block_size", {"config.json": config.get("block_size")}, "speculators takes 8 by default", findings
    )
    mask = body.agreed(
        "mask_token_id", {"config.json": config.get("mask_token_id")}, "vLLM refuses, speculators stops", findings
    )
    aux = body.numbers("aux_hidden_state_layer_ids", config.get("aux_hidden_state_layer_ids"), findings)
    if 0 in aux:
        findings.error(
            f"aux_hidden_state_layer_ids {aux} holds 0, the embedding's output",
            "speculators and vLLM count hidden states before a layer, so 0 looks like z-lab's ids, one too low",
            f"if these are 0-based layer outputs, write {[i + 1 for i in aux]}",
        )
    name, architectures = _verifier(config, block, findings)
    draft = config.get("draft_vocab_size")
    if draft is None:
        findings.error("no draft_vocab_size", "speculators takes 32000", "write it; the target's size if not reduced")
    if base is None or block is None or mask is None or not aux:
        return None
    return Sheet(
        hidden_size=base.hidden_size,
        num_layers=base.num_hidden_layers,
        num_attention_heads=base.num_attention_heads,
        num_key_value_heads=base.num_key_value_heads,
        head_dim=body.head_dim(base),
        intermediate_size=base.intermediate_size,
        rms_norm_eps=base.rms_norm_eps,
        rope_theta=theta,
        block_size=block,
        mask_token_id=mask,
        layer_ids=tuple(i - 1 for i in aux),
        target_layers=config.get("num_target_layers"),
        vocab_size=base.vocab_size,
        draft_vocab_size=None if draft == base.vocab_size else draft,
        max_position_embeddings=base.max_position_embeddings,
        target_name=name,
        target_architectures=architectures,
        target_fingerprint=config.get("target_fingerprint"),
    )


def _verifier(config: dict[str, Any], block: int | None, findings: Findings) -> tuple[str | None, tuple[str, ...]]:
    """Checks `speculators_config`; gives back the target's name and architectures."""
    try:
        section = config["speculators_config"]
        tokens = section["proposal_methods"][0]["speculative_tokens"]
        verifier = section["verifier"]
        name, architectures = verifier["name_or_path"], tuple(verifier.get("architectures") or ())
    except (KeyError, IndexError, TypeError, AttributeError):
        findings.error(
            "speculators_config lacks proposal_methods[0].speculative_tokens or verifier.name_or_path",
            "vLLM refuses the folder",
            "write both",
        )
        return None, ()
    if block is not None and tokens != block - 1:
        findings.error(
            f"speculative_tokens is {tokens} beside block_size {block}",
            "vLLM drafts that many tokens; a block holds the anchor and block_size - 1 drafts",
            f"write {block - 1}",
        )
    if not name or str(name).startswith(("/", "~", ".")):
        findings.warning(
            f"verifier.name_or_path is {name!r}",
            "vLLM and speculators fetch the target by it, so it works on no other machine",
            "export with target_name=<hub id>",
        )
    return name, architectures


SPECULATORS = Layout("speculators", recognises, parse, compose, reduced=("d2t", "t2d", "lm_head.weight"))
