"""DFPQ and HRCA against numbers from the authors' code."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file
from torch import nn
from vitrewrite.passes.dfpq import MaskPool, PositionalQueries
from vitrewrite.passes.hrca import CellSelection

import vitrewrite as vr
from tests.goldens import FOLDER, Case, case
from tests.hf.zoo import SEGMENTER

BOTH = "add dfpq(keys=unchanged) to decoder\nadd hrca(omega=4) to decoder\n"


class DenseDecoder(nn.Module):
    """Five layers on four levels, all of them dense and masked: what both passes start from."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.models.mask2former.modeling_mask2former import (
            Mask2FormerTransformerModule,
        )

        config = hf.Mask2FormerConfig(**{**SEGMENTER, "decoder_layers": 6})
        self.model = nn.Module()
        self.model.transformer_module = Mask2FormerTransformerModule(32, config)
        self.model.transformer_module.level_embed = nn.Embedding(4, 32)
        self.class_predictor = nn.Linear(32, 6)

    def forward(
        self, f0: Any, f1: Any, f2: Any, f3: Any, p0: Any, p1: Any, p2: Any, p3: Any, mask_map: Any
    ) -> Any:
        """Logits of classes and masks before each layer and behind the last."""
        parts = self.model.transformer_module
        decoder, maps = parts.decoder, (f0, f1, f2, f3)
        positions = [p.flatten(2).permute(2, 0, 1) for p in (p0, p1, p2, p3)]
        features = [
            (f.flatten(2) + parts.level_embed.weight[i][None, :, None]).permute(2, 0, 1)
            for i, f in enumerate(maps)
        ]
        batch = f0.shape[0]
        bias = parts.queries_embedder.weight.unsqueeze(1).repeat(1, batch, 1)
        queries = parts.queries_features.weight.unsqueeze(1).repeat(1, batch, 1)
        classes, masks = [], []
        for i in range(6):
            state = decoder.layernorm(queries)
            size = maps[(i % 4 if i < 5 else 0)].shape[-2:]
            mask, blocked = decoder.mask_predictor(state, mask_map, size)
            classes.append(self.class_predictor(state.transpose(0, 1)))
            masks.append(mask)
            if i < 5:
                blocked = blocked * (blocked.sum(-1) != blocked.shape[-1]).unsqueeze(-1)
                made = decoder.layers[i](
                    queries,
                    level_index=i % 4,
                    position_embeddings=positions,
                    query_position_embeddings=bias,
                    encoder_hidden_states=features,
                    encoder_attention_mask=blocked,
                )
                queries = made[0] if isinstance(made, tuple) else made
        return classes, masks


def _rewritten(golden: Case) -> tuple[vr.Rewritten, tuple[torch.Tensor, ...]]:
    names = [f"input.features.{i}" for i in range(4)] + [f"input.kp.{i}" for i in range(4)]
    inputs = tuple(golden.tensors[n] for n in (*names, "input.mask_features"))
    model = DenseDecoder().eval()
    state = load_file(FOLDER / golden.about["base_file"])
    model.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
    rewritten = vr.apply(BOTH, model, example=inputs)
    for name, tensor in rewritten.delta().items():
        stem = name.partition("dfpq.h.")[2]
        if stem:
            tensor.copy_(golden.tensors[f"method.dfpq.mlp.{stem}"])
    return rewritten, inputs


def test_the_whole_decoder_is_that_of_the_authors() -> None:
    golden = case("faseg-decoder")
    rewritten, inputs = _rewritten(golden)
    with torch.no_grad():
        classes, masks = rewritten.module(*inputs)
    for j in range(6):
        golden.close(classes[j], f"output.class.{j}")
    for j, name in ((0, "first"), (1, "1"), (5, "last")):
        golden.close(masks[j], f"output.mask.{name}")


def test_its_gradients_are_those_of_the_authors() -> None:
    golden = case("faseg-decoder")
    rewritten, inputs = _rewritten(golden)
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    rewritten.module.requires_grad_(True)
    classes, masks = rewritten.module(*inputs)
    probes = golden.tensors["probe.class"], golden.tensors["probe.mask"]
    ((classes[-1] * probes[0]).sum() + (masks[-1] * probes[1]).sum()).backward()
    found = {f"features.{i}": inputs[i].grad for i in range(4)}
    found |= {f"kp.{i}": inputs[4 + i].grad for i in range(4)}
    found |= {
        n.replace("dfpq.h.", "dfpq.mlp."): p.grad
        for n, p in rewritten.module.named_parameters()
        if n.startswith("dfpq.")
    }
    found |= {
        n.removeprefix("model.transformer_module.").removesuffix(".weight"): p.grad
        for n, p in rewritten.module.named_parameters()
        if n.startswith("model.transformer_module.") and n.count(".") == 3
    }
    golden.gradients_close({k: v for k, v in found.items() if v is not None})


def test_queries_from_attention_and_from_the_first_masks() -> None:
    golden = case("faseg-dfpq")
    given = golden.tensors
    queries = PositionalQueries(32)
    names = [f"{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    queries.load_state_dict({f"h.{name}": given[f"method.mlp.{name}"] for name in names})
    bias = given["method.bias_queries"].unsqueeze(1).expand(-1, 2, -1)
    attention = given["input.attention"].clone().requires_grad_()
    kp = given["input.kp"].clone().requires_grad_()
    positions = kp.permute(1, 2, 0).unflatten(2, (8, 8))
    out = queries(bias, attention, positions)
    golden.close(out, "output")
    (out * given["probe"]).sum().backward()
    golden.gradients_close(
        {
            "attention": attention.grad, "kp": kp.grad,  # type: ignore[dict-item]
            **{f"mlp.{i}.weight": queries.get_parameter(f"h.{i}.weight").grad for i in (0, 2)},
        }
    )  # fmt: skip
    masks = given["input.first.mask_probability"].logit().unflatten(2, (8, 8))
    golden.close(queries(bias, MaskPool()(masks, positions), positions), "output.first")


def test_cross_attention_to_the_pixels_of_the_best_cells() -> None:
    golden = case("faseg-hrca")
    given = golden.tensors
    base = load_file(FOLDER / golden.about["base_file"])
    attention = nn.MultiheadAttention(32, 4)
    attention.load_state_dict(
        {k[len("base.cross_attn.") :]: v for k, v in base.items() if ".cross_attn." in k}
    )
    features = given["input.features"].clone().requires_grad_()
    keys, positions = (t.flatten(2).permute(2, 0, 1) for t in (features, given["input.kp"]))
    chosen, where = CellSelection(omega=4)(given["input.low_attention"], keys, positions, features)
    assert torch.equal(chosen, given["expected.keys"])
    pixels = CellSelection(omega=4).pixels(given["input.low_attention"].sum(1), 32, 32)
    assert torch.equal(
        pixels[:, ::64] // 256 * 4 + pixels[:, ::64] % 32 // 8, given["expected.cells"]
    )
    bias = given["method.bias_queries"].unsqueeze(1)
    query = given["input.queries"]
    y, weights = attention(query + bias, chosen + where, chosen)
    golden.close(weights, "expected.attention")
    norm = [base[f"base.cross_attn_layer_norm.{n}"] for n in ("weight", "bias")]
    out = F.layer_norm(query + y, (32,), *norm)
    golden.close(out, "output")
    (out * given["probe"]).sum().backward()
    assert attention.in_proj_weight.grad is not None
    assert features.grad is not None
    golden.gradients_close(
        {"in_proj_weight": attention.in_proj_weight.grad, "features": features.grad}
    )
