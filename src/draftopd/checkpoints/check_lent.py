"""Checks of what a drafter borrows of its target: copies in the file, and what no file can carry along."""

import torch
import torch.nn.functional as F
from torch import Tensor

from draftopd.checkpoints.check_weights import EMBEDDING, HEAD, lent
from draftopd.checkpoints.findings import Findings
from draftopd.checkpoints.spec import DrafterSpec
from draftopd.drafters.eagle3 import Eagle3
from draftopd.target.model import Target

SAMPLED = 64  # rows of the embedding that are compared
MEASURE = "make serve-check measures what it costs"


def check(tensors: dict[str, Tensor], spec: DrafterSpec, target: Target, findings: Findings) -> None:
    _copies(tensors, spec, target, findings)
    _embedding(spec, target, findings)
    if spec.kind is not Eagle3:  # EAGLE-3 trains a head of its own, in which nothing else takes part
        _head(target, findings)


def _copies(tensors: dict[str, Tensor], spec: DrafterSpec, target: Target, findings: Findings) -> None:
    """Copies in the file of what the drafter borrows must equal the target's."""
    head = target.model.get_output_embeddings().weight
    if spec.draft_vocab_size is not None:
        head = head[(tensors["d2t"].long() + torch.arange(spec.draft_vocab_size)).to(head.device)]
    owned = {EMBEDDING: target.model.get_input_embeddings().weight, HEAD: head}
    for name in lent(spec):
        own = owned[name].cpu().float()
        if name in tensors and not torch.allclose(tensors[name].float(), own, rtol=1e-2, atol=1e-3):
            findings.error(
                f"{name} is not the target's",
                "vLLM uses it, SGLang drops it, here the target's is used",
                "it was trained with an embedding or head of its own: not supported",
            )


@torch.no_grad()
def _embedding(spec: DrafterSpec, target: Target, findings: Findings) -> None:
    """Engines look tokens up in the table; the module that a drafter was trained on may do more than that."""
    table = target.model.get_input_embeddings().weight
    tokens = torch.linspace(0, len(table) - 1, min(SAMPLED, len(table)), device=table.device).long()
    rows, embedded = table[tokens].float(), target.embed(tokens).float()
    if spec.kind is Eagle3:  # its layer begins with a norm of the embedding: no factor gets through
        rows, embedded = F.normalize(rows, dim=-1), F.normalize(embedded, dim=-1)
    if torch.allclose(embedded, rows, rtol=1e-2, atol=1e-2 * float(rows.std())):
        return
    factor = float((embedded * rows).sum() / rows.square().sum())
    scaled = torch.allclose(embedded, factor * rows, rtol=1e-2, atol=1e-2 * abs(factor) * float(rows.std()))
    findings.warning(
        f"the target's embedding gives {f'{factor:.4g} times' if scaled else 'something else than'} its table's rows",
        "where an engine looks the drafter's tokens up in the bare table, as vLLM does, acceptance falls and nothing "
        "fails (seen on a tiny Gemma 3: tau 1.5 instead of 4.8)",
        "serve it with transformers, which calls the embedding, or with an engine that does what it does (vllm#41703 "
        f"for Gemma 4){', or train EAGLE-3, whose norm takes the factor out' if scaled else ''}; {MEASURE}",
    )


def _head(target: Target, findings: Findings) -> None:
    """The parts of a borrowed head besides its weight, which is all that engines lend and files hold."""
    head, instead = target.head(), f"train EAGLE-3, which has a head of its own; {MEASURE}"
    if head.bias is not None:
        findings.warning(
            "the target's head has a bias",
            "vLLM's shared head and the rows of a reduced draft vocabulary come without it: other drafts are chosen, "
            "and acceptance falls",
            instead,
        )
    parts = [] if head.scale == 1.0 else [f"a factor {head.scale:.4g}"]
    parts += [] if head.softcap is None else [f"a soft cap {head.softcap:g}"]
    if parts:
        findings.warning(
            f"the target's head has {' and '.join(parts)}",
            "vLLM, SGLang and transformers draft from the bare product: greedy drafts are the same, sampled ones come "
            "from another distribution, and fewer are accepted",
            f"let the engine draft greedily, or {instead}",
        )
