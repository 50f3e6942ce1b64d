"""What the linter says of the tensors of model.safetensors: names, shapes, numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from draftopd.drafters.dflash import DFlash
from draftopd.drafters.eagle3 import Eagle3
from draftopd.exchange import vocabulary
from draftopd.exchange.findings import Findings
from draftopd.exchange.folder import Contents
from draftopd.exchange.sheet import Kind, Layout, Sheet
from draftopd.exchange.vocabulary import HEAD

EMBEDDING = "embed_tokens.weight"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SILENT = "SGLang serves random weights in their place without a word"
MISSING: dict[Kind, str] = {DFlash: f"{SILENT}, vLLM stops", Eagle3: f"{SILENT}, vLLM what its memory held"}
LOADING = "vLLM and SGLang stop while loading it"
# part of a tensor's name -> what gives its shape; the first one that fits
SIZES = {
    "self_attn": "num_attention_heads, num_key_value_heads and head_dim",
    "mlp.": "intermediate_size",
    "lm_head": "draft_vocab_size",
    "d2t": "draft_vocab_size",
    "t2d": "vocab_size",
    EMBEDDING: "vocab_size",
    "norm": "hidden_size",
}


def check(contents: Contents, sheet: Sheet, layout: Layout, findings: Findings) -> None:
    expected = {
        layout.tensor(name): tuple(value.shape)
        for name, value in sheet.build("meta").state_dict().items()
        if name != "d2t"
    }
    _names(contents.tensors, sheet, layout, expected, findings)
    _shapes(contents.tensors, sheet, expected | _optional(sheet), findings)
    own = {name: value for name, value in contents.tensors.items() if name not in ("d2t", "t2d")}
    _dtypes(own, contents, findings)
    _values(own, findings)
    if not findings.errors:
        vocabulary.check(contents.tensors, sheet, layout, findings)


def lent(sheet: Sheet) -> tuple[str, ...]:
    """What is the target's; a published drafter may carry it all the same."""
    return (EMBEDDING,) if sheet.kind is Eagle3 else (EMBEDDING, HEAD)


def _optional(sheet: Sheet) -> dict[str, tuple[int, ...]]:
    size, whole = sheet.shape.hidden_size, sheet.shape.vocab_size
    draft = sheet.draft_vocab_size or whole
    return {EMBEDDING: (whole, size), HEAD: (draft, size), "d2t": (draft,), "t2d": (whole,)}


def _names(
    tensors: dict[str, Tensor], sheet: Sheet, layout: Layout, expected: dict[str, tuple[int, ...]], findings: Findings
) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing == [HEAD]:
        findings.error(
            f"no {HEAD}: an EAGLE-3 drafter has a head of its own",
            "SGLang drafts from random rows without a word, vLLM from the target's",
            "copy it from the checkpoint",
        )
    elif missing:
        findings.error(f"missing {_list(missing)}", MISSING[sheet.kind], _renaming(tensors, layout))
    extra = [name for name in tensors if name not in expected and name not in _optional(sheet)]
    if extra:
        findings.error(
            f"unknown {_list(extra)}",
            "SGLang drops unknown names without a word, vLLM stops",
            f"drop them, or take a plain {sheet.kind.__name__} drafter",
        )


def _renaming(tensors: dict[str, Tensor], layout: Layout) -> str:
    """How to mend missing names, by what stands there instead."""
    if any(name.startswith(("model.", "encoder.")) for name in tensors):
        return "strip the prefix model., and call encoder.fc fc and encoder.output_norm_enc hidden_norm"
    if layout.kind is Eagle3 and any(name.startswith(("layers.0.", "midlayer.")) for name in tensors):
        return f"call the layer {layout.tensor('midlayer.')}*, as its layout does"
    return "copy them from the checkpoint"


def _shapes(tensors: dict[str, Tensor], sheet: Sheet, expected: dict[str, tuple[int, ...]], findings: Findings) -> None:
    for name, shape in expected.items():
        found = tuple(tensors[name].shape) if name in tensors else shape
        if name == "fc.weight" and found == shape[::-1] != shape:
            findings.error(
                f"fc.weight is transposed: {list(found)} instead of {list(shape)}",
                LOADING,
                "save fc.weight.T.contiguous(): a row for each output",
            )
        elif name == "fc.weight" and found != shape:
            findings.error(
                f"fc.weight {list(found)} instead of {list(shape)}: it reads "
                f"{found[-1] / sheet.shape.hidden_size:g} layers, config.json names {len(sheet.layer_ids)}",
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
    elif HEAD in weights and not weights[HEAD].any():
        findings.error(
            f"{HEAD} is all zero: it was never trained",
            "vLLM and SGLang draft one and the same token always",
            "export a trained drafter",
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
