"""What the linter says of the tensors of model.safetensors: names, shapes, numbers, the draft vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from draftopd.exchange.findings import Findings
from draftopd.exchange.folder import Contents
from draftopd.exchange.sheet import Layout, Sheet

LENT = ("embed_tokens.weight", "lm_head.weight")  # the target's; a published drafter may carry them all the same
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check(contents: Contents, sheet: Sheet, layout: Layout, findings: Findings) -> None:
    _shapes(contents.tensors, sheet, findings)
    _dtypes(contents, findings)
    if not findings.errors:
        _vocabulary(contents.tensors, sheet, layout, findings)


def _shapes(tensors: dict[str, Tensor], sheet: Sheet, findings: Findings) -> None:
    draft = sheet.draft_vocab_size or sheet.vocab_size
    expected = {name: tuple(value.shape) for name, value in sheet.build("meta").state_dict().items() if name != "d2t"}
    size = sheet.hidden_size
    optional = {LENT[0]: (sheet.vocab_size, size), LENT[1]: (draft, size), "d2t": (draft,), "t2d": (sheet.vocab_size,)}
    missing = [name for name in expected if name not in tensors]
    if missing:
        findings.error(
            f"missing {_list(missing)}",
            "SGLang serves random weights in their place without a word, vLLM stops",
            "copy them from the checkpoint"
            if not any(name.startswith(("model.", "encoder.")) for name in tensors)
            else "strip the prefix model., and call encoder.fc fc and encoder.output_norm_enc hidden_norm",
        )
    extra = [name for name in tensors if name not in expected and name not in optional]
    if extra:
        findings.error(
            f"unknown {_list(extra)}",
            "SGLang drops unknown names without a word, vLLM stops",
            "drop them, or take a drafter of plain DFlash",
        )
    for name, shape in (expected | optional).items():
        found = tuple(tensors[name].shape) if name in tensors else shape
        if name == "fc.weight" and found == shape[::-1] != shape:
            findings.error(
                f"fc.weight is transposed: {list(found)} instead of {list(shape)}", "engines refuse it", "transpose it"
            )
        elif name == "fc.weight" and found != shape:
            findings.error(
                f"fc.weight {list(found)} instead of {list(shape)}: it reads {found[-1] / size:g} layers, "
                f"config.json names {len(sheet.layer_ids)}",
                "SGLang and vLLM refuse it",
                "write the layer ids that the drafter was trained on",
            )
        elif found != shape:
            findings.error(f"{name} {list(found)} instead of {list(shape)}", "engines refuse it", "mend config.json")


def _dtypes(contents: Contents, findings: Findings) -> None:
    weights = {name: value for name, value in contents.tensors.items() if name not in ("d2t", "t2d")}
    kinds = {value.dtype for value in weights.values()}
    strange = [name for name, value in weights.items() if value.dtype not in FLOATS]
    if strange:
        findings.error(f"{_list(strange)} of {weights[strange[0]].dtype}", "cannot be trained", "take the original")
    elif len(kinds) > 1:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        findings.warning(f"weights of {names}", "transformers casts all to config.json's dtype", "write one dtype")
    wanted = contents.config.get("dtype") or contents.config.get("torch_dtype")
    if wanted and {str(kind).removeprefix("torch.") for kind in kinds} != {str(wanted).removeprefix("torch.")}:
        findings.warning(f"dtype is {wanted}, the weights are not", "transformers casts them on loading", "mend it")
    if "format" not in contents.metadata:
        findings.warning("no format in the metadata of model.safetensors", "transformers 4 refuses", "write format: pt")
    broken = [name for name, value in weights.items() if value.dtype in FLOATS and not value.isfinite().all()]
    if broken:
        findings.error(
            f"{_list(broken)} not finite", "speculators saves NaN where it lacked weights", "export it again"
        )


def _vocabulary(tensors: dict[str, Tensor], sheet: Sheet, layout: Layout, findings: Findings) -> None:
    draft, d2t, t2d = sheet.draft_vocab_size, tensors.get("d2t"), tensors.get("t2d")
    if draft is None:
        if (d2t is not None and d2t.any()) or (t2d is not None and not t2d.all()):
            findings.error("d2t or t2d without draft_vocab_size", "vLLM drafts other tokens", "write draft_vocab_size")
        return
    absent = [name for name in layout.reduced if name not in tensors]
    if d2t is None or "t2d" in absent:
        findings.error(
            f"draft_vocab_size {draft} without {_list(absent)}",
            "speculators fills in zeros, vLLM drafts other tokens",
            "export it again with its target",
        )
        return
    if absent:
        findings.warning(
            f"draft_vocab_size {draft} without {_list(absent)}",
            "vLLM has no rows of its own to draft from",
            "export it again with its target",
        )
    if layout.name == "zlab":
        findings.warning(
            f"draft_vocab_size {draft} in z-lab's layout",
            "SGLang, transformers and z-lab's code drop d2t and draft from the whole vocabulary, on which it was not "
            "trained: the text stays right, acceptance changes (make serve-check says by how much)",
            "serve it with vLLM, or train with drafter.draft_vocab_size=null",
        )
    _offsets(d2t, t2d, sheet, findings)


def _offsets(d2t: Tensor, t2d: Tensor | None, sheet: Sheet, findings: Findings) -> None:
    if d2t.is_floating_point() or d2t.dtype == torch.bool:
        findings.error(f"d2t is {d2t.dtype}", "it holds offsets, target id minus draft id", "write whole numbers")
        return
    ids = d2t.long() + torch.arange(len(d2t))
    if not d2t.any():
        findings.error("d2t is all zero", "it was never filled: drafts could only be the first tokens", "fill it")
    elif ids.min() < 0 or ids.max() >= sheet.vocab_size or not (ids.diff() > 0).all():
        looks = " (it seems to hold ids instead of offsets)" if (d2t.long().diff() > 0).all() else ""
        findings.error(
            f"d2t does not lead to rising token ids below {sheet.vocab_size}{looks}",
            "vLLM drafts other tokens than the drafter meant",
            "write target id minus draft id",
        )
    elif t2d is not None and not torch.equal(t2d.bool().nonzero()[:, 0], ids):
        findings.error("t2d marks other tokens than d2t", "speculators takes the wrong rows of the head", "mend t2d")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
