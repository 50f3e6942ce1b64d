"""Does a drafter that we export serve as it was measured? Texts and acceptance in vLLM and transformers beside ours.

    python -m benchmarks.serve_check CHECKPOINT --prompts questions.jsonl

Exports the drafter, serves the exported folder with its target in vLLM (in an environment of its own) and in
transformers' `generate`, greedy on the same token ids. It passes where every text is the target's plain greedy text,
each engine's mean acceptance length (tokens committed / verifications) is within 2 % of ours, and half of its responses
have our very verifications, because errors of opposite sign leave a mean alone. `audits` names each response of vLLM
that has others, as `callbacks.served_audit` does in training: a tie of the drafter's logits, or none. A difference of
texts counts as none only where the target's top two logits differ by less than 1e-4 in float64; each one is listed.
transformers drafts from the whole vocabulary, so there a drafter with a reduced one is compared with ours run with the
full head; it has no EAGLE-3, which vLLM alone judges. The last line printed is one JSON object; the exit code is 1
where it did not pass.

`--break layer-offset` shows what the gate is for: the exported folder names every layer one too high. The checks'
findings on it are in the result beside the acceptance that was lost; then our note of what the drafter was trained to
read is taken out, as folders of others have none, and nothing but acceptance tells the offset.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from benchmarks.lossless import compare, questions
from benchmarks.serve_engines import by_transformers, full_head, ours
from benchmarks.vllm_environment import ask_vllm

from draftopd.checkpoints.checks import READS
from draftopd.checkpoints.findings import Finding
from draftopd.checkpoints.native import Restored, restore
from draftopd.checkpoints.published import check_folder, default_layout, published, write
from draftopd.command import one_line_errors
from draftopd.data.sources import encode
from draftopd.drafters.dflash import DFlash
from draftopd.publishing.audit import PromptIds, Served, audit, from_accepted, request
from draftopd.target.model import Target
from draftopd.tracking.header import git_commit

TOLERANCE = 0.02  # of the acceptance length
SAME = 0.5  # of the responses; drafts near a tie are few, those of a drafter that is fed otherwise many
# two errors can cancel: that of vLLM's kernel hid most of a layer offset of -1, which the mended pass shows
JUDGED = ("vllm", "vllm_mended", "transformers")
LAYER_IDS = ("target_layer_ids", "aux_hidden_state_layer_ids", "eagle_aux_hidden_state_layer_ids")


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    with one_line_errors():
        run = restore(args.checkpoint)
        prompts = chosen(run, args.prompts, args.limit)
        if args.audit:
            report = audited(run, prompts, args)
        else:
            engines, notes = serve(run, prompts, args)
            report = verdict(engines, prompts, args.tokens, run.target) | notes
        print(json.dumps(report))
        return 0 if report["passed"] else 1


def chosen(run: Restored, path: Path | None, limit: int) -> list[list[int]]:
    """Prompts of a file, or the drafter's own test prompts."""
    if path is None:
        return run.encoded("test", limit)
    encoded = [encode(prompt, run.target.tokenizer) for prompt in questions(path, limit)]
    return [ids for ids in encoded if ids is not None]


def serve(run: Restored, prompts: PromptIds, args: argparse.Namespace) -> tuple[dict[str, Served], dict[str, Any]]:
    """What every engine made of the prompts, and what the report notes besides."""
    target, drafter, tokens = run.target, run.drafter, args.tokens
    dflash = type(drafter) is DFlash
    engines = {"plain": ours(target, None, prompts, tokens), "ours": ours(target, drafter, prompts, tokens)}
    if dflash and drafter.d2t is not None:
        engines["ours_full_head"] = ours(target, full_head(drafter), prompts, tokens)
    with TemporaryDirectory(prefix="serve-check-") as scratch:
        folder = Path(scratch, "drafter")
        findings = exported(run, args, folder)
        if dflash:
            engines["transformers"] = by_transformers(target, published(folder, target), prompts, tokens)
        answer = ask_vllm(args.environment, request(target, drafter, folder, prompts, tokens))
    served = from_vllm(prompts, answer)
    return engines | served, {
        "audits": audits(run, prompts, served),
        "drafter": type(drafter).__name__,
        "layout": args.layout or default_layout(drafter),
        "broken": args.broken,
        "findings": [f"{finding.severity}: {finding}" for finding in findings],
        "vllm_counters": answer["counters"],
        "versions": {"vllm": answer["version"], "transformers": transformers.__version__, "torch": torch.__version__},
        "commit": git_commit(),
    }


def exported(run: Restored, args: argparse.Namespace, folder: Path) -> Sequence[Finding]:
    """The drafter as it is asked for, and what the checks find in it."""
    findings: Sequence[Finding] = write(run.drafter, folder, args.layout or default_layout(run.drafter), run.target)
    if args.broken:
        shift_layers(folder)
        findings = list(check_folder(folder, run.target))
        drop_note(folder)
    return findings


def from_vllm(prompts: PromptIds, answer: dict[str, Any]) -> dict[str, Served]:
    return {name: from_accepted(prompts, answer[name]) for name in ("vllm", "vllm_mended") if name in answer}


def audits(run: Restored, prompts: PromptIds, served: dict[str, Served]) -> dict[str, Any]:
    """Each pass of vLLM beside redraft's chains along the same texts."""
    found = {name: audit(run.target, run.drafter, prompts, one) for name, one in served.items()}
    return {
        name: {"passed": one.passed, "summary": one.summary, "ties": one.ties, "wrong": one.wrong}
        for name, one in found.items()
    }


def audited(run: Restored, prompts: PromptIds, args: argparse.Namespace) -> dict[str, Any]:
    """What `callbacks.served_audit` does after an epoch, by the mended pass where vLLM had to be mended."""
    with TemporaryDirectory(prefix="serve-check-") as scratch:
        folder = Path(scratch, "drafter")
        exported(run, args, folder)
        answer = ask_vllm(args.environment, request(run.target, run.drafter, folder, prompts, args.tokens))
    found = audits(run, prompts, from_vllm(prompts, answer))
    judged = found.get("vllm_mended", found["vllm"])
    names = {"drafter": type(run.drafter).__name__, "broken": args.broken, "vllm": answer["version"]}
    return {"passed": judged["passed"], "audits": found, **names, "commit": git_commit()}


def shift_layers(folder: Path) -> None:
    """Makes a published folder name each of the target's layers one too high, as a slip between conventions does."""

    def shifted(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: [i + 1 for i in ids] if key in LAYER_IDS else shifted(ids) for key, ids in value.items()}

    path = folder / "config.json"
    path.write_text(json.dumps(shifted(json.loads(path.read_text()))))


def drop_note(folder: Path) -> None:
    """Makes a folder of ours one of another trainer's, to the checks: it has no note of what it was trained to read."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[READS]
    path.write_text(json.dumps(config))


def verdict(engines: dict[str, Served], prompts: PromptIds, tokens: int, target: Target) -> dict[str, Any]:
    """Compares every engine's texts with plain decoding, and acceptance with ours.

    Args:
        engines: `plain`, `ours`, `vllm`; `vllm_mended` and `transformers` for DFlash; `ours_full_head` where its draft
            vocabulary is reduced: then transformers is compared with that.
    """
    plain = [torch.tensor(text) for text in engines["plain"].texts]
    speculative = {name: served for name, served in engines.items() if name != "plain"}
    texts = {
        name: compare([torch.tensor(text) for text in served.texts], plain, prompts, tokens, target)
        for name, served in speculative.items()
    }
    pairs = {name: "ours" for name in speculative if not name.startswith("ours")}
    if "ours_full_head" in engines:
        pairs["transformers"] = "ours_full_head"
    deviation = {name: engines[name].tau / engines[other].tau - 1 for name, other in pairs.items()}
    same = {
        name: sum(a == b for a, b in zip(engines[name].committed, engines[other].committed, strict=True))
        for name, other in pairs.items()
    }
    texts_equal = not any(result["wrong"] for result in texts.values())
    judged = [name for name in JUDGED if name in pairs]
    close = all(abs(deviation[name]) <= TOLERANCE for name in judged)
    # vLLM as installed has its own reason to differ where it had to be mended
    exempt = {"vllm"} if "vllm_mended" in pairs else set()
    alike = all(same[name] >= SAME * len(prompts) for name in judged if name not in exempt)
    return {
        "tau_transformers": None,
        **{f"tau_{name}": served.tau for name, served in speculative.items()},
        "texts_equal": texts_equal,
        "passed": texts_equal and close and alike,
        "deviation": deviation,
        "same_verifications": same,
        "prompts": len(prompts),
        "max_new_tokens": tokens,
        "texts": texts,
    }


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a drafter's checkpoint file")
    parser.add_argument("--prompts", type=Path, help="a JSON Lines file; without it the drafter's own test prompts")
    parser.add_argument("--limit", type=int, default=100, help="prompts, at most")
    parser.add_argument("--tokens", type=int, default=48, help="max_new_tokens")
    parser.add_argument("--layout", help="by default the one that vLLM and SGLang read; or speculators")
    parser.add_argument("--break", dest="broken", choices=["layer-offset"], help="spoil the exported folder")
    parser.add_argument("--audit", action="store_true", help="only vLLM's steps and texts beside redraft's chains")
    parser.add_argument("--environment", type=Path, default=Path(".venv-vllm"), help="of vLLM; made if it is not there")
    args = parser.parse_args(words)
    if args.limit < 1 or args.tokens < 2:
        parser.error("--limit must be at least 1, and --tokens 2: the first token comes from the prefill")
    return args


if __name__ == "__main__":
    sys.exit(main())
