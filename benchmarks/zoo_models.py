"""The models of the zoo: small inputs, random weights, small configurations where a model is big."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Entry:
    """A model and example inputs for it, by position and by name."""

    name: str
    make: Callable[[], tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]]


def entries() -> Iterator[Entry]:
    """All models of the zoo."""
    declare_detection_ops()
    for name, (size, extra) in TIMM.items():
        yield Entry(f"timm {name}", _of_timm(name, size, extra))
    for name, (shape, extra) in TORCHVISION.items():
        yield Entry(f"torchvision {name}", _of_torchvision(name, shape, extra))
    for name, make in TRANSFORMERS.items():
        yield Entry(f"transformers {name}", make)


def declare_detection_ops() -> None:
    """Declares what torchvision registers in C++, for a wheel whose C++ does not fit this torch."""
    library = torch.library.Library("torchvision", "DEF")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        try:
            library.define(schema)
        except RuntimeError:
            return
    _declared.append(library)


_declared: list[Any] = []

# The size of the image, and what the model is made with besides its name.
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "convnext_atto": (64, {}),
    "efficientnet_b0": (64, {}),
    "mobilenetv3_small_100": (64, {}),
    "regnety_002": (64, {}),
    "densenet121": (64, {"block_config": (2, 2, 2, 2)}),
    "swin_tiny_patch4_window7_224": (112, {"img_size": 112, "depths": (2, 2, 1, 1)}),
    "deit_tiny_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "mixer_s32_224": (224, {}),
    "levit_128s": (224, {"depth": (1, 1, 1)}),
    "maxvit_tiny_rw_224": (224, {"depths": (1, 1, 1, 1)}),
    "resnext50_32x4d": (64, {"layers": (1, 1, 1, 1)}),
    "seresnet50": (64, {"layers": (1, 1, 1, 1)}),
    "ecaresnet50d": (64, {"layers": (1, 1, 1, 1)}),
    "resnetv2_50": (64, {"layers": (1, 1, 1, 1)}),
    "convnextv2_atto": (64, {"depths": (1, 1, 2, 1)}),
    "tf_efficientnet_b0": (64, {}),
    "mobilenetv2_100": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "regnetx_002": (64, {}),
    "ghostnet_100": (64, {}),
    "nfnet_l0": (64, {}),
    "resmlp_12_224": (224, {}),
    "gmlp_ti16_224": (224, {}),
    "xception41": (64, {}),
    "dla34": (64, {}),
    "hrnet_w18_small": (64, {}),
    "poolformer_s12": (64, {}),
    "edgenext_xx_small": (64, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "mobileone_s0": (64, {}),
    "coat_lite_tiny": (224, {}),
    "coatnet_0_rw_224": (224, {"depths": (1, 1, 1, 1)}),
    "pit_ti_224": (224, {}),
    "tnt_s_patch16_224": (224, {"depth": 4}),
    "visformer_tiny": (224, {}),
    "crossvit_tiny_240": (240, {}),
    "cait_xxs24_224": (224, {"depth": 4}),
    "convit_tiny": (224, {"depth": 11, "local_up_to_layer": 2}),
    "beit_base_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 4}),
    "inception_v3": (128, {}),
    "inception_v4": (128, {}),
    "vgg11_bn": (64, {}),
    "repvgg_a0": (64, {}),
    "repvit_m0_9": (64, {}),
    "res2net50_26w_4s": (64, {"layers": (1, 1, 1, 1)}),
    "resnest14d": (64, {}),
    "skresnet18": (64, {}),
    "selecsls42": (64, {}),
    "dpn48b": (64, {}),
    "cspresnet50": (64, {}),
    "darknet53": (64, {}),
    "ese_vovnet19b_dw": (64, {}),
    "rexnet_100": (64, {}),
    "hgnetv2_b0": (64, {}),
    "lcnet_050": (64, {}),
    "tinynet_e": (64, {}),
    "mnasnet_100": (64, {}),
    "convmixer_768_32": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientvit_b0": (64, {}),
    "fastvit_t8": (64, {}),
    "fasternet_t0": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "gcvit_xxtiny": (224, {}),
    "hiera_tiny_224": (224, {"stages": (1, 1, 2, 1)}),
    "inception_next_atto": (64, {}),
    "mambaout_femto": (64, {}),
    "mvitv2_tiny": (224, {}),
    "nest_tiny": (224, {}),
    "pvt_v2_b0": (64, {}),
    "sequencer2d_s": (224, {"layers": (1, 1, 1, 1)}),
    "starnet_s1": (64, {}),
    "swinv2_tiny_window8_256": (128, {"img_size": 128, "depths": (1, 1, 2, 1)}),
    "twins_pcpvt_small": (64, {"img_size": 64, "depths": (1, 1, 2, 1)}),
    "volo_d1_224": (224, {}),
    "xcit_nano_12_p16_224": (64, {"depth": 2}),
    "vit_relpos_small_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "botnet26t_256": (128, {"img_size": 128}),
    "halonet26t": (256, {}),
}
_IMAGE = (3, 64, 64)
_NO_BACKBONE = {"weights_backbone": None, "num_classes": 5}
TORCHVISION: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "alexnet": (_IMAGE, {}),
    "vgg11": (_IMAGE, {}),
    "resnet18": (_IMAGE, {}),
    "wide_resnet50_2": (_IMAGE, {}),
    "resnext50_32x4d": (_IMAGE, {}),
    "squeezenet1_1": (_IMAGE, {}),
    "densenet121": (_IMAGE, {}),
    "googlenet": (_IMAGE, {"aux_logits": False, "init_weights": False}),
    "inception_v3": ((3, 96, 96), {"aux_logits": False, "init_weights": False}),
    "shufflenet_v2_x0_5": (_IMAGE, {}),
    "mobilenet_v2": (_IMAGE, {}),
    "mobilenet_v3_small": (_IMAGE, {}),
    "mnasnet0_5": (_IMAGE, {}),
    "efficientnet_b0": (_IMAGE, {}),
    "efficientnet_v2_s": (_IMAGE, {}),
    "regnet_x_400mf": (_IMAGE, {}),
    "regnet_y_400mf": (_IMAGE, {}),
    "convnext_tiny": (_IMAGE, {}),
    "vit_b_16": (_IMAGE, {"image_size": 64}),
    "swin_t": (_IMAGE, {}),
    "swin_v2_t": (_IMAGE, {}),
    "maxvit_t": ((3, 224, 224), {}),
    "deeplabv3_resnet50": (_IMAGE, _NO_BACKBONE),
    "fcn_resnet50": (_IMAGE, _NO_BACKBONE),
    "lraspp_mobilenet_v3_large": (_IMAGE, _NO_BACKBONE),
    "r3d_18": ((3, 8, 32, 32), {}),
}


def _of_timm(name: str, size: int, extra: dict[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        import timm

        model = timm.create_model(name, num_classes=11, **extra)
        return model, (torch.randn(2, 3, size, size),), {}

    return make


def _of_torchvision(name: str, shape: tuple[int, ...], extra: dict[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        import torchvision

        made = torchvision.models.get_model(name, weights=None, **{"num_classes": 11, **extra})
        return made, (torch.randn(2, *shape),), {}

    return make


IDS = {"input_ids": (2, 13)}


def _of_transformers(
    model: str, config: str, inputs: Any, cache: bool = False, **sizes: Any
) -> Callable[[], Any]:
    """A small model of transformers: its class, that of its configuration, the shapes of its inputs."""

    def make() -> Any:
        import transformers

        configured = getattr(transformers, config)(**sizes)
        made = getattr(transformers, model)(configured)
        generator = torch.Generator().manual_seed(0)
        given = {
            name: torch.randint(0, 90, shape, generator=generator)
            if name.endswith("ids")
            else torch.randn(shape, generator=generator)
            for name, shape in inputs.items()
        }
        if hasattr(configured, "use_cache") and not cache:
            given["use_cache"] = False
        return made, (), given

    return make


_SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "vocab_size": 97,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 12}
_PATCHES = {"image_size": 32, "patch_size": 8}
_PIXELS = {"pixel_values": (2, 3, 32, 32)}
_BOTH = {**IDS, "decoder_input_ids": (2, 7)}
_SEQ2SEQ = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "vocab_size": 97,
}
_SPEECH = {
    **_SMALL,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
_T5 = {"d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4, "vocab_size": 97}
_GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 97}
TRANSFORMERS = {
    "BERT": _of_transformers("BertModel", "BertConfig", IDS, **_SMALL),
    "GPT-2": _of_transformers("GPT2LMHeadModel", "GPT2Config", IDS, **_GPT2),
    "GPT-2 with its cache": _of_transformers("GPT2LMHeadModel", "GPT2Config", IDS, True, **_GPT2),
    "Llama": _of_transformers("LlamaForCausalLM", "LlamaConfig", IDS, **_GROUPED),
    "Llama with its cache": _of_transformers("LlamaForCausalLM", "LlamaConfig", IDS, True, **_GROUPED),
    "T5": _of_transformers("T5ForConditionalGeneration", "T5Config", _BOTH, **_T5),
    "T5 with its cache": _of_transformers("T5ForConditionalGeneration", "T5Config", _BOTH, True, **_T5),
    "ViT": _of_transformers("ViTModel", "ViTConfig", _PIXELS, **_SMALL, **_PATCHES),
    "Wav2Vec2": _of_transformers(
        "Wav2Vec2Model", "Wav2Vec2Config", {"input_values": (2, 1600)}, **_SPEECH
    ),
    "CLIP": _of_transformers(
        "CLIPModel",
        "CLIPConfig",
        {**IDS, **_PIXELS},
        text_config={**_SMALL, "eos_token_id": 96},
        vision_config={**_SMALL, **_PATCHES},
    ),
    "Mistral": _of_transformers("MistralForCausalLM", "MistralConfig", IDS, **_GROUPED),
    "Qwen2": _of_transformers("Qwen2ForCausalLM", "Qwen2Config", IDS, **_SMALL, num_key_value_heads=2),
    "Qwen3": _of_transformers("Qwen3ForCausalLM", "Qwen3Config", IDS, **_GROUPED),
    "Gemma": _of_transformers("GemmaForCausalLM", "GemmaConfig", IDS, **_GROUPED),
    "Gemma2": _of_transformers("Gemma2ForCausalLM", "Gemma2Config", IDS, **_GROUPED),
    "Gemma3": _of_transformers("Gemma3ForCausalLM", "Gemma3TextConfig", IDS, **_GROUPED),
    "Whisper": _of_transformers(
        "WhisperModel",
        "WhisperConfig",
        {"input_features": (2, 80, 60), "decoder_input_ids": (2, 7)},
        **_SEQ2SEQ,
        max_source_positions=30,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "Mamba": _of_transformers(
        "MambaForCausalLM", "MambaConfig", IDS, hidden_size=48, num_hidden_layers=2, vocab_size=97
    ),
    "BART": _of_transformers("BartModel", "BartConfig", _BOTH, **_SEQ2SEQ),
    "RoBERTa": _of_transformers("RobertaModel", "RobertaConfig", IDS, **_SMALL),
    "DistilBERT": _of_transformers(
        "DistilBertModel",
        "DistilBertConfig",
        IDS,
        dim=48,
        n_layers=2,
        n_heads=4,
        hidden_dim=80,
        vocab_size=97,
    ),
    "GPT-NeoX": _of_transformers("GPTNeoXForCausalLM", "GPTNeoXConfig", IDS, **_SMALL),
    "Phi": _of_transformers("PhiForCausalLM", "PhiConfig", IDS, **_SMALL),
    "Phi3": _of_transformers(
        "Phi3ForCausalLM", "Phi3Config", IDS, **_SMALL, num_key_value_heads=2, pad_token_id=0
    ),
    "OPT": _of_transformers(
        "OPTForCausalLM",
        "OPTConfig",
        IDS,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=80,
        vocab_size=97,
        word_embed_proj_dim=48,
    ),
    "ALBERT": _of_transformers(
        "AlbertModel", "AlbertConfig", IDS, **_SMALL, embedding_size=24, num_hidden_groups=1
    ),
    "ELECTRA": _of_transformers("ElectraModel", "ElectraConfig", IDS, **_SMALL, embedding_size=24),
    "DeBERTa-v2": _of_transformers("DebertaV2Model", "DebertaV2Config", IDS, **_SMALL),
    "MPNet": _of_transformers("MPNetModel", "MPNetConfig", IDS, **_SMALL),
    "Falcon": _of_transformers(
        "FalconForCausalLM",
        "FalconConfig",
        IDS,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=97,
    ),
    "Bloom": _of_transformers(
        "BloomForCausalLM", "BloomConfig", IDS, hidden_size=48, n_layer=2, n_head=4, vocab_size=97
    ),
    "Mixtral": _of_transformers(
        "MixtralForCausalLM", "MixtralConfig", IDS, **_GROUPED, num_local_experts=3
    ),
    "DINOv2": _of_transformers("Dinov2Model", "Dinov2Config", _PIXELS, **_SMALL, **_PATCHES),
    "SigLIP": _of_transformers(
        "SiglipModel",
        "SiglipConfig",
        {**IDS, **_PIXELS},
        text_config={**_SMALL, "projection_size": 48},
        vision_config={**_SMALL, **_PATCHES},
    ),
    "HuBERT": _of_transformers("HubertModel", "HubertConfig", {"input_values": (2, 1600)}, **_SPEECH),
}
