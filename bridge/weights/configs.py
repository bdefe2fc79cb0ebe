"""What the config.json beside a checkpoint says of its layers, and no array shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bridge.core.layers import Layer

# The entry that is the eps of every norm of a model: the forwards of transformers 4.57, by model_type.
_EPS: Mapping[str, Sequence[str]] = {
    "layer_norm_eps": (
        *("bert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "mpnet", "deberta-v2"),
        *("vit", "deit", "beit", "dinov2", "clip_text_model", "clip_vision_model", "cohere", "phi"),
        *("siglip_vision_model", "gpt_neox"),
    ),
    "layer_norm_epsilon": ("gpt2", "gptj", "t5", "mt5", "mamba", "falcon"),
    "rms_norm_eps": (
        *("llama", "mistral", "mixtral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3"),
        *("gemma", "gemma2", "gemma3_text", "recurrent_gemma", "vaultgemma"),
    ),
    "norm_epsilon": ("starcoder2",),
}
# Models whose norms multiply by 1 + weight.
_ONE_MORE = frozenset(
    {"gemma", "gemma2", "gemma3_text", "recurrent_gemma", "vaultgemma", "qwen3_next", "t5gemma"}
)
_NORMS = frozenset({"scale"})  # the kind of a norm of which names and shapes alone are known


def configured(layers: Iterable[Layer], config: Mapping[str, Any] | None) -> list[Layer]:
    """The layers of a bare checkpoint, its norms as its config says that they are."""
    model = str((config or {}).get("model_type", ""))
    entry = next((entry for entry, models in _EPS.items() if model in models), "")
    eps = (config or {}).get(entry)
    settings = (("eps", float(eps)),) if isinstance(eps, (int, float)) else ()
    offset = -1.0 if model in _ONE_MORE else 0.0
    return [
        replace(
            layer,
            settings=settings,
            slots=tuple(
                replace(slot, offset=offset) if slot.part == "weight" else slot for slot in layer.slots
            ),
        )
        if layer.kind in _NORMS
        else layer
        for layer in layers
    ]
