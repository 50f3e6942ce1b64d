"""Checks of the tensors in model.safetensors: names, shapes, numbers, and a reduced draft vocabulary (`d2t`, `t2d`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from draftopd.checkpoints.files import Contents
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.spec import DrafterSpec, Kind, Layout
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3

Shapes = dict[str, tuple[int, ...]]
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SILENT = "SGLang silently serves random weights in their place"
MISSING: dict[Kind, str] = {
    DFlash: f"{SILENT}, vLLM stops",
    DFlash2: f"{SILENT}, vLLM stops",
    DSpark: "vLLM and SGLang stop, DeepSpec fills in random numbers",
    Eagle3: f"{SILENT}, vLLM whatever its memory held",
}
LOADING = "vLLM and SGLang stop while loading it"
# part of a tensor's name -> the keys that give its shape; the first match counts
SIZES = {
    "fc.weight": "hidden_size and the layer ids",
    "markov_head": "markov_rank, vocab_size and draft_vocab_size",
    "confidence_head": "hidden_size and markov_rank",
    "candidate_selector": "selector_rank and vocab_size",
    "_conv.": "conv_kernel_size and conv_group_size",
    "self_attn": "num_attention_heads, num_key_value_heads and head_dim",
    "mlp.": "intermediate_size",
    "lm_head": "draft_vocab_size",
    "d2t": "draft_vocab_size",
    "t2d": "vocab_size",
    EMBEDDING: "vocab_size",
    "norm": "hidden_size",
}


def check(contents: Contents, spec: DrafterSpec, layout: Layout, findings: Findings) -> None:
    expected = {
        layout.tensor(name): tuple(value.shape)
        for name, value in spec.build("meta").state_dict().items()
        if name != "d2t"
    }
    _names(contents.tensors, spec, layout, expected, findings)
    _shapes(contents.tensors, spec, expected | _optional(spec), findings)
    own = {name: value for name, value in contents.tensors.items() if name not in ("d2t", "t2d")}
    _dtypes(own, contents, findings)
    _values(own, findings)
    if not findings.errors:
        check_vocabulary(contents.tensors, spec, layout, findings)


def lent(spec: DrafterSpec) -> tuple[str, ...]:
    """Tensors that are the target's; a published drafter may carry copies."""
    return (EMBEDDING,) if spec.kind is Eagle3 else (EMBEDDING, HEAD)


def _optional(spec: DrafterSpec) -> Shapes:
    size, whole = spec.shape.hidden_size, spec.shape.vocab_size
    draft = spec.draft_vocab_size or whole
    return {EMBEDDING: (whole, size), HEAD: (draft, size), "d2t": (draft,), "t2d": (whole,)}


def _names(tensors: dict[str, Tensor], spec: DrafterSpec, layout: Layout, expected: Shapes, findings: Findings) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing == [HEAD]:
        findings.error(
            f"no {HEAD}: an EAGLE-3 drafter has a head of its own",
            "SGLang silently drafts from random rows, vLLM from the target's",
            "copy it from the checkpoint",
        )
    elif missing:
        findings.error(f"missing {_list(missing)}", MISSING[spec.kind], _renaming(tensors, layout))
    copies = [name for name in layout.carried if name not in tensors and spec.draft_vocab_size is None]
    if copies:
        findings.warning(
            f"no {' and no '.join(copies)}",
            "SGLang stops, DeepSpec fills in random numbers; vLLM and ours take the target's",
            "copy what is missing from the target",
        )
    extra = [name for name in tensors if name not in expected and name not in _optional(spec)]
    if extra:
        findings.error(
            f"unknown {_list(extra)}",
            "SGLang silently drops unknown names, vLLM stops",
            f"drop them, or take a plain {spec.kind.__name__} drafter",
        )


def _renaming(tensors: dict[str, Tensor], layout: Layout) -> str:
    """How to fix missing names, from the names found instead."""
    if any(name.startswith(("model.", "encoder.")) for name in tensors):
        return "strip the prefix model., and call encoder.fc fc and encoder.output_norm_enc hidden_norm"
    if layout.kind is Eagle3 and any(name.startswith(("layers.0.", "midlayer.")) for name in tensors):
        return f"call the layer {layout.tensor('midlayer.')}*, as its layout does"
    return "copy them from the checkpoint"


def _shapes(tensors: dict[str, Tensor], spec: DrafterSpec, expected: Shapes, findings: Findings) -> None:
    for name, shape in expected.items():
        found = tuple(tensors[name].shape) if name in tensors else shape
        if name == "fc.weight" and found == shape[::-1] != shape:
            findings.error(
                f"fc.weight is transposed: {list(found)} instead of {list(shape)}",
                LOADING,
                "save fc.weight.T.contiguous(): a row for each output",
            )
        elif name == "fc.weight" and found != shape and len(found) == 2:
            findings.error(
                f"fc.weight {list(found)} instead of {list(shape)}: it reads "
                f"{found[-1] / spec.shape.hidden_size:g} layers, config.json names {len(spec.layer_ids)}",
                "SGLang and vLLM refuse it",
                "write the layer ids that the drafter was trained on",
            )
        elif found != shape:
            keys = next(keys for part, keys in SIZES.items() if part in name)
            findings.error(
                f"{name} {list(found)} instead of {list(shape)}", LOADING, f"write {keys} as the tensor has it"
            )


def _dtypes(weights: dict[str, Tensor], contents: Contents, findings: Findings) -> None:
    kinds = {value.dtype for value in weights.values()}
    strange = [name for name, value in weights.items() if value.dtype not in FLOATS]
    if strange:
        findings.error(
            f"{_list(strange)} of {weights[strange[0]].dtype}",
            "vLLM and SGLang copy the bare numbers, without the scales of quantised ones; here they cannot be trained",
            "take the drafter that was quantised, or save float32, bfloat16 or float16",
        )
    elif len(kinds) > 1:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        findings.warning(
            f"weights of {names}",
            "transformers casts all to config.json's dtype, ours to float32",
            "save all weights in the dtype that config.json names",
        )
    wanted = contents.config.get("dtype") or contents.config.get("torch_dtype")
    if wanted and {str(kind).removeprefix("torch.") for kind in kinds} != {str(wanted).removeprefix("torch.")}:
        findings.warning(
            f"dtype is {wanted}, the weights are not",
            "transformers casts them on loading, ours keeps the file's",
            "write the dtype of the weights into config.json",
        )
    if "format" not in contents.metadata:
        findings.warning(
            "no format in the metadata of model.safetensors",
            "transformers 4, which z-lab's code pins, refuses the file",
            'save it with metadata={"format": "pt"}',
        )


def _values(weights: dict[str, Tensor], findings: Findings) -> None:
    broken = [name for name, value in weights.items() if value.dtype in FLOATS and not value.isfinite().all()]
    if broken:
        findings.error(
            f"{_list(broken)} not finite",
            "vLLM and SGLang load it and accept no draft; speculators saves NaN where it lacked weights",
            "export it again from a checkpoint that drafts",
        )
    elif HEAD in weights and weights[HEAD].dtype in FLOATS and not weights[HEAD].any():
        findings.error(
            f"{HEAD} is all zero: it was never trained",
            "vLLM and SGLang always draft the same token",
            "export a trained drafter",
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_vocabulary(tensors: dict[str, Tensor], spec: DrafterSpec, layout: Layout, findings: Findings) -> None:
    """Of tensors that have the right shapes."""
    draft, d2t, t2d = spec.draft_vocab_size, tensors.get("d2t"), tensors.get("t2d")
    if draft is None:
        if (d2t is not None and d2t.any()) or (t2d is not None and not t2d.all()):
            findings.error("d2t or t2d without draft_vocab_size", "vLLM drafts other tokens", "write draft_vocab_size")
        return
    absent = [name for name in layout.reduced if name not in tensors]
    again = "export it again with its target"
    if d2t is None:
        effect = "speculators fills in zeros, vLLM and SGLang silently take draft ids for token ids"
        findings.error(f"draft_vocab_size {draft} without {', '.join(absent)}", effect, again)
        return
    if "t2d" in absent and layout.name == "speculators":
        findings.error(f"draft_vocab_size {draft} without t2d", "speculators fills in zeros", again)
        return
    if absent:
        effect = "vLLM has no rows of its own to draft from" if HEAD in absent else "SafeAI's code cannot train it on"
        findings.warning(f"draft_vocab_size {draft} without {', '.join(absent)}", effect, again)
    if layout.name == "zlab":
        findings.warning(
            f"draft_vocab_size {draft} in z-lab's layout",
            f"SGLang, transformers and z-lab's code drop d2t and draft from all {spec.shape.vocab_size} rows of the "
            f"head, {1 - draft / spec.shape.vocab_size:.0%} of which it was not trained on: the text stays right, a "
            "draft costs more, and acceptance changes (measured once: tau 2.915 instead of 2.935, docs/serving.md)",
            "serve it with vLLM, or train with drafter.draft_vocab_size=null; make serve-check measures this one",
        )
    if layout.name == "deepspec":
        findings.warning(
            f"draft_vocab_size {draft} in DeepSpec's layout",
            "only vLLM knows it there: SGLang and DeepSpec stop on the shapes of the head and the Markov head",
            "serve it with vLLM, or train with drafter.draft_vocab_size=null",
        )
    _offsets(d2t, t2d, spec, findings)


def _offsets(d2t: Tensor, t2d: Tensor | None, spec: DrafterSpec, findings: Findings) -> None:
    if d2t.is_floating_point() or d2t.dtype == torch.bool:
        findings.error(
            f"d2t is {d2t.dtype}",
            "vLLM and SGLang add it to draft ids, which are whole numbers",
            "write target id minus draft id as int64",
        )
        return
    ids = d2t.long() + torch.arange(len(d2t))
    if not d2t.any():
        findings.error(
            "d2t is all zero",
            f"it was never filled: vLLM and SGLang take draft ids for token ids, only the first {len(d2t)}",
            "write target id minus draft id, or export it again with its target",
        )
    elif ids.min() < 0 or ids.max() >= spec.shape.vocab_size or not (ids.diff() > 0).all():
        looks = " (it seems to hold ids instead of offsets)" if (d2t.long().diff() > 0).all() else ""
        findings.error(
            f"d2t does not lead to rising token ids below {spec.shape.vocab_size}{looks}",
            "vLLM drafts other tokens than the drafter meant",
            "write target id minus draft id",
        )
    elif t2d is not None and t2d.bool().sum() != len(d2t):
        findings.error(
            f"t2d marks {int(t2d.bool().sum())} tokens, d2t holds {len(d2t)}",
            "speculators stops",
            "write t2d again: true at draft id + d2t of every draft id",
        )
    elif t2d is not None and not torch.equal(t2d.bool().nonzero()[:, 0], ids):
        findings.error(
            "t2d marks other tokens than d2t: one of them is stale",
            "SafeAI's code and speculators train t2d's tokens, vLLM and SGLang serve d2t's",
            "export it again with its target",
        )
