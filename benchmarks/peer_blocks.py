"""Block logits of an exported block drafter by other people's models; runs in their environment, without this package.

    python peer_blocks.py speculators FOLDER INPUTS ANSWER
    python peer_blocks.py zlab FOLDER INPUTS ANSWER MODEL_FILE TARGET
    python peer_blocks.py deepspec FOLDER INPUTS ANSWER CHECKOUT

INPUTS has for each text i `tokens.i` [T], `features.i` [T, F], `anchors.i` [N]; ANSWER gets `logits.i` [N, K, V'], and
from z-lab's code `features.i` as it reads them off the target, from DeepSpec's `confidence.i` [N, K]; ANSWER's name
with `.version` names the code.
"""

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor


def main() -> None:
    kind, folder, inputs, answer, *more = sys.argv[1:]
    torch._dynamo.config.disable = True  # it compiles its whole forward too
    # with two, the first text of one process in about ten came out 2e-3 off, in float64 too, and every other was right
    torch.set_num_threads(1)
    values = load_file(inputs)
    names = [name.partition(".")[2] for name in values if name.startswith("tokens")]
    rows = {i: (values[f"tokens.{i}"], values[f"features.{i}"], values[f"anchors.{i}"]) for i in names}
    with torch.no_grad():
        result, code = {"speculators": speculators, "zlab": zlab, "deepspec": deepspec}[kind](folder, rows, *more)
    save_file({name: value.contiguous() for name, value in result.items()}, answer)
    Path(answer).with_suffix(".version").write_text(f"{code}, transformers {transformers.__version__}")


Rows = dict[str, tuple[Tensor, Tensor, Tensor]]


def speculators(folder: str, rows: Rows) -> tuple[dict[str, Tensor], str]:
    """By the training forward, whose logits nothing returns: its head tells them. DFlash2's selector corrects them."""
    from speculators import SpeculatorModel, SpeculatorModelConfig
    from speculators.losses import resolve_loss_config

    config = SpeculatorModelConfig.from_pretrained(folder)
    config.transformer_layer_config._attn_implementation = "eager"  # as its draft_attn_impl; by default it compiles
    model = SpeculatorModel.from_pretrained(folder, config=config).eval()
    selects = config.speculators_model_type == "dflash2"
    eager = {"tv_loss_fn": resolve_loss_config("tv", "eager")["tv"][0]} if selects else {}
    seen: list[Tensor] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, output: seen.extend((inputs[0], output)))
    result = {}
    for i, (tokens, features, anchors) in rows.items():
        supervised = torch.zeros_like(tokens).index_fill(0, anchors, 1)  # it draws anchors from these, all of them
        model(
            hidden_states=features[None],
            input_ids=tokens[None],
            loss_mask=supervised[None],
            verifier_last_hidden_states=features[None, :, : model.hidden_size],  # of its loss, not asked here
            document_ids=torch.zeros_like(tokens)[None],
            loss_config=resolve_loss_config("ce", "eager"),
            max_anchors=len(anchors),
            **eager,
        )
        hidden, logits = (rows.unflatten(1, (len(anchors), model.block_size))[0, :, 1:] for rows in seen[-2:])
        result[f"logits.{i}"] = (
            selected(model.candidate_selector, hidden, logits, tokens[anchors]) if selects else logits
        )
    return result, f"speculators {version('speculators')}"


def selected(selector: torch.nn.Module, hidden: Tensor, logits: Tensor, anchors: Tensor) -> Tensor:
    """Logits [N, K, V] with the scores of all tokens after the drafts that they choose, not of the best 16 alone."""
    every, before, out = torch.arange(logits.shape[-1]).expand(len(anchors), -1), anchors, []
    for rows, unary in zip(hidden.unbind(1), logits.unbind(1), strict=True):
        out.append(selector.score_candidates(unary, rows, before, every))
        before = out[-1].argmax(-1)
    return torch.stack(out, 1)


def zlab(folder: str, rows: Rows, file: str, target_name: str) -> tuple[dict[str, Tensor], str]:
    spec = importlib.util.spec_from_file_location("zlab_dflash", file)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    model = code.DFlashDraftModel.from_pretrained(folder).eval()
    target = transformers.AutoModelForCausalLM.from_pretrained(target_name, dtype=torch.float32)
    result = {}
    for i, (tokens, features, anchors) in rows.items():
        states = target(tokens[None], output_hidden_states=True).hidden_states
        result[f"features.{i}"] = code.extract_context_feature(states, model.target_layer_ids)[0]
        blocks = []
        for anchor in anchors.tolist():
            block = torch.full((1, model.block_size), model.mask_token_id)
            block[:, 0] = tokens[anchor]
            hidden = model(
                target_hidden=features[None, :anchor],
                noise_embedding=target.model.embed_tokens(block),
                position_ids=torch.arange(anchor + model.block_size)[None],
                is_causal=False,
            )
            blocks.append(target.lm_head(hidden[:, 1:]))
        result[f"logits.{i}"] = torch.cat(blocks)
    return result, "z-lab's model file"


def deepspec(folder: str, rows: Rows, checkout: str) -> tuple[dict[str, Tensor], str]:
    """Greedy drafts of blocks by its evaluation's calls, each block after its features, without a cache."""
    sys.path.insert(0, checkout)
    from deepspec.modeling.dspark.qwen3.modeling import Qwen3DSparkModel

    model = Qwen3DSparkModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    result = {}
    for i, (tokens, features, anchors) in rows.items():
        logits, confidence = [], []
        for anchor in anchors.tolist():
            block = torch.full((1, model.block_size), model.mask_token_id)
            block[:, 0] = tokens[anchor]
            hidden = model._forward_backbone(
                target_hidden_states=features[None, :anchor],
                noise_embedding=model.embed_tokens(block),
                position_ids=torch.arange(anchor + model.block_size)[None],
                is_causal=False,
            )
            options = {"first_prev_token_ids": block[:, 0], "hidden_states": hidden}
            drafts, corrected = model.sample_draft_tokens(model.compute_logits(hidden), **options)
            before = torch.cat([block[:, :1], drafts[:, :-1]], 1)
            logits.append(corrected)
            confidence.append(model.predict_confidence_step(hidden, before))
        result |= {f"logits.{i}": torch.cat(logits), f"confidence.{i}": torch.cat(confidence)}
    return result, "DeepSpec's model file"


if __name__ == "__main__":
    main()
