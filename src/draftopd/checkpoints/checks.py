"""What is wrong with a published drafter, told before an engine silently serves it badly.

The checks follow the names and conventions of vLLM 0.32 `qwen3_dflash.py`, `llama_eagle3.py`, `gpu_model_runner.py`,
SGLang `models/dflash.py`, `models/llama_eagle3.py`, z-lab `model.py`, SafeAI `cnets.py`, speculators 0.9,
transformers 5; for DSpark those of DeepSpec's `modeling/dspark` and of both engines' main branches.
"""

from typing import Any

from torch import Tensor

from draftopd.checkpoints import check_lent, check_weights
from draftopd.checkpoints.files import Contents
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.layouts import speculators
from draftopd.checkpoints.layouts.deepspec import DEEPSPEC
from draftopd.checkpoints.layouts.safeai import SAFEAI
from draftopd.checkpoints.layouts.zlab import DFLASH2, ZLAB
from draftopd.checkpoints.spec import DrafterSpec, Kind, Layout
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.errors import DraftError
from draftopd.target.model import Target

READS = "trained_to_read"
"""What a drafter was trained to read, repeated in config.json under a key that no engine reads.

A layer offset between two conventions leaves a config.json in which every key that engines read is valid (vllm#40727):
without this key only lost acceptance shows it. Folders of others lack the key.
"""
ARCHITECTURES = '["DFlashDraftModel"], ["DFlash2DraftModel"], ["Qwen3DSparkModel"] or ["LlamaForCausalLMEagle3"]'
LAYOUTS = (
    DEEPSPEC,
    DFLASH2,
    ZLAB,
    SAFEAI,
    speculators.DFLASH,
    speculators.DFLASH2,
    speculators.DSPARK,
    speculators.EAGLE3,
)
OUTPUTS = "write target_layer_ids as 0-based layer outputs, aux_hidden_state_layer_ids as these plus one"
LAYER_IDS: dict[Kind, str] = {
    DFlash: OUTPUTS,
    DFlash2: OUTPUTS,
    DSpark: OUTPUTS,
    Eagle3: "write those of eagle_config as 0-based layer outputs, all others as these plus one",
}

BEYOND = "SGLang refuses it, vLLM and transformers pass too few features to fc, or stop"
STOP = "vLLM, SGLang and transformers do not compare it: shapes do not fit and they stop"
SILENT = "vLLM, SGLang and transformers do not compare it: acceptance falls and nothing fails"
GIVE = "give the target that it was trained for"
EFFECTS = {"hidden_size": STOP, "vocab_size": SILENT, "num_target_layers": SILENT, "target fingerprint": SILENT}


def inspect(contents: Contents, findings: Findings, target: Target | None = None) -> tuple[Layout, DrafterSpec] | None:
    """Adds every fault to `findings`; returns layout and spec where both are known.

    Args:
        target: compared with the drafter, where it is given.
    """
    config = contents.config
    layout = next((layout for layout in LAYOUTS if layout.recognises(config)), None)
    if layout is None:
        kind = config.get("speculators_model_type") or config.get("architectures") or config.get("model_type")
        findings.error(
            f"{kind} is neither a DFlash drafter (z-lab's layout, or speculators') nor a DFlash2 one (likewise) nor a "
            "DSpark one (DeepSpec's, or speculators') nor an EAGLE-3 one (SafeAI's, or speculators')",
            "vLLM and SGLang build another model from these names, which is not supported here",
            f"if it is one of these, write architectures {ARCHITECTURES}, or speculators_model_type dflash, dflash2, "
            "dspark or eagle3",
        )
        return None
    spec = layout.parse(config, findings, None if target is None else target.shape.num_layers)
    if spec is None:
        return None
    _vocabulary_sizes(spec, findings)
    _layer_ids(spec, findings)
    _buildable(spec, findings)
    if findings.errors:
        return layout, spec
    check_weights.check(contents, spec, layout, findings)
    _reads(config, spec.build("meta").reads, findings)
    if target is not None:
        _target(contents.tensors, spec, target, findings)
    else:
        rows = layout.reduced if spec.draft_vocab_size is not None else ()
        own = [name for name in check_weights.lent(spec) if name in contents.tensors and name not in rows]
        if own:
            findings.warning(
                f"{' and '.join(own)} in the file",
                f"{'every engine' if layout.carried else 'vLLM'} uses what it finds, "
                f"{'' if layout.carried else 'SGLang and '}ours {'takes' if layout.carried else 'take'} the target's",
                "compare them with the target's: give one",
            )
    return layout, spec


def _vocabulary_sizes(spec: DrafterSpec, findings: Findings) -> None:
    draft, whole = spec.draft_vocab_size, spec.shape.vocab_size
    if draft is not None and (isinstance(draft, bool) or not isinstance(draft, int) or not 1 <= draft < whole):
        findings.error(
            f"draft_vocab_size {draft!r} beside vocab_size {whole}",
            "vLLM and SGLang make head and d2t of that many rows, which the file cannot fill, and stop",
            f"write the number of entries of d2t, or {whole} where the vocabulary is not reduced",
        )
    mask = spec.shape.mask_token_id
    if not 0 <= mask < whole:
        findings.error(
            f"mask_token_id {mask} is outside the table of {whole} rows",
            "vLLM, SGLang and transformers stop or read a row that does not exist",
            "write the token that the drafter was trained with",
        )
    if spec.block_size < 2:
        findings.error(
            f"block_size is {spec.block_size}", "it counts the anchor: nothing would be drafted", "write 2 or more"
        )


def _layer_ids(spec: DrafterSpec, findings: Findings) -> None:
    ids, depth = list(spec.layer_ids), spec.target_layers
    if min(ids) < 0:
        findings.error(
            f"layer ids {ids} hold {min(ids)}",
            "vLLM and SGLang find no such layer and pass too few features, z-lab's code counts it from the end",
            LAYER_IDS[spec.kind],
        )
    if sorted(set(ids)) != ids:
        findings.error(
            f"layer ids {ids} do not rise",
            "vLLM and SGLang take each layer's features once, in the order of layers",
            "train with drafter.layer_ids that rise",
        )
    if depth is not None and ids[-1] >= depth:
        hint = " (is that the number of ids, as TorchSpec writes it?)" if depth == len(ids) else ""
        findings.error(f"layer id {ids[-1]} of a target of {depth} layers{hint}", BEYOND, LAYER_IDS[spec.kind])
    elif depth is not None and ids[-1] == depth - 1:
        findings.warning(
            f"layer id {ids[-1]} is the target's last layer",
            "engines that capture before a layer, SGLang, vLLM's first ones and speculators, cannot give its output",
            "train on earlier layers",
        )


def _buildable(spec: DrafterSpec, findings: Findings) -> None:
    """What the drafter's own class refuses, where nothing else is wrong."""
    try:
        if not findings.errors:
            spec.build("meta")
    except DraftError as error:
        findings.error(str(error), "it cannot be built", "write the value that it was trained with")


def _target(tensors: dict[str, Tensor], spec: DrafterSpec, target: Target, findings: Findings) -> None:
    shape = target.shape
    facts = {
        "hidden_size": (spec.shape.hidden_size, shape.hidden_size),
        "vocab_size": (spec.shape.vocab_size, shape.vocab_size),
        "num_target_layers": (spec.target_layers or shape.num_layers, shape.num_layers),
        "target fingerprint": (spec.target_fingerprint or target.fingerprint, target.fingerprint),
    }
    for name, (ours, theirs) in facts.items():
        if ours != theirs:
            findings.error(f"{name} {ours}, the target's is {theirs}", EFFECTS[name], GIVE)
    if max(spec.layer_ids) >= shape.num_layers:
        findings.error(
            f"layer ids reach {max(spec.layer_ids)} of {shape.num_layers} layers",
            BEYOND,
            f"{GIVE}, or {LAYER_IDS[spec.kind]}",
        )
    if spec.shape.mask_token_id >= target.embed_rows:
        findings.error(
            f"mask_token_id {spec.shape.mask_token_id} is outside the target's {target.embed_rows} rows",
            "vLLM, SGLang and transformers look it up in the target's embedding, which lacks it, and stop",
            f"{GIVE}, or write the mask token that it was trained with",
        )
    if not findings.errors:
        check_lent.check(tensors, spec, target, findings)


def _reads(config: dict[str, Any], described: dict[str, list[int]], findings: Findings) -> None:
    """Compares READS with what the other keys of config.json describe."""
    noted = config.get(READS)
    if noted not in (None, described):
        findings.error(
            f"config.json lets the drafter read {described}, it was trained to read {noted}",
            "it gets other features than it was trained on: acceptance falls and nothing fails (vllm#40727)",
            "change the first back, or export it again",
        )
