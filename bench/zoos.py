"""The models that ``coverage.py`` tries: those of a library, each still to be built.

A library that is not installed has none. Whatever can be built small is: two layers, narrow,
few words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

CLASSES = 1000
SMALL_MILLIONS = 60
"""Parameters of the largest transformers model that counts as tiny."""


@dataclass
class Entry:
    """A model that is still to be built.

    Attributes:
        inputs: what to call it with, where its own parts do not tell; None if they do.
    """

    zoo: str
    group: str
    name: str
    build: Callable[[], nn.Module]
    inputs: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        return f"{self.zoo}/{self.name}"


class Unrandom(TorchFunctionMode):
    """Large parameters of a model that is built meanwhile are constant, which takes no time.

    Coverage does not depend on their values, as long as they are not zero.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in _RANDOM and target.numel() > _LARGE:
            target.detach().fill_(0.02)
            return target
        return func(*args, **kwargs)


_LARGE = 1 << 14
_RANDOM = frozenset(
    ("normal_", "uniform_", "erfinv_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_")
)


# --- torchvision and timm -------------------------------------------------------------------------


def torchvision_models(max_millions: float) -> Iterator[Entry]:
    from torchvision import models

    for name in models.list_models():
        builder = models.get_model_builder(name)
        parts = builder.__module__.split(".")[2:]
        if "quantization" in parts:
            continue
        group = parts[0] if len(parts) > 1 else "classification"
        weights = next(iter(models.get_model_weights(name)), None)
        if weights is None or weights.meta["num_params"] <= 1e6 * max_millions:
            yield Entry("torchvision", group, name, partial(torchvision_model, name))


def torchvision_model(name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    package = models.get_model_builder(name).__module__
    if "detection" in package or "segmentation" in package:
        options["weights_backbone"] = None
    if "video" in package or "segmentation" in package:
        options["num_classes"] = CLASSES
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return models.get_model(name, **options)


def timm_models(max_millions: float) -> Iterator[Entry]:
    """An entry for each family, whose smallest model is found when it is built."""
    import timm

    families = defaultdict(list)
    for name in timm.list_models():
        families[name.split("_")[0]].append(name)
    for family, names in families.items():
        yield Entry("timm", family, family, partial(timm_family, names, max_millions))


def timm_family(names: list[str], max_millions: float) -> nn.Module:
    name, millions = _smallest(names)
    if millions > max_millions:
        raise NotBuilt(f"{millions:.0f} M parameters")
    return timm_model(name)


def _smallest(names: list[str]) -> tuple[str, float]:
    """The model of fewest parameters and how many millions it has."""
    import timm

    sizes = {}
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        sizes[name] = _millions(model)
    name = min(sizes, key=sizes.__getitem__)
    return name, sizes[name]


def _millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def timm_model(name: str) -> nn.Module:
    """With the classes that the GHN predicts, where the model is a classifier."""
    import timm

    model = timm.create_model(name)
    if getattr(model, "num_classes", 0) in (0, None, CLASSES):
        return model
    return timm.create_model(name, num_classes=CLASSES)


# --- transformers ---------------------------------------------------------------------------------

_TINY = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **{"head_dim": 8, "d_kv": 8, "ffn_dim": 128, "moe_intermediate_size": 24},
    **{"encoder_hidden_size": 32, "cross_hidden_size": 32, "num_heads": 4, "rotary_dim": 4},
    **{"layer_group_size": 2},
    **{"n_group": 1, "topk_group": 1, "num_expert_group": 1, "num_experts_per_token": 2},
    **{"mamba_d_head": 8, "mamba_n_heads": 8, "mamba_headdim": 8},
    **{"attention_head_dim": 16, "attention_hidden_size": 64, "projection_dim": 32},
    **{"quantization_dim": 64},
    **{"out_hidden_size": 32, "mm_tokens_per_image": 4, "hidden_dim": 32},
    **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32),
}
_SHALLOW = {
    name: value
    for name, value in _TINY.items()
    if "layer" in name or "experts" in name.replace("experts_per_tok", "")
}
_WORDS = 160
_PLACEHOLDERS = {"image": 159, "video": 158, "audio": 157}
"""Tokens that stand for what is shown beside texts."""
_LAYERS = ("layer_types", "mlp_layer_types", "block_types", "layers_block_type")
_LINEAR = {"linear_attention"}
"""All layers of some configurations, whose models are mixtures and cannot run without others."""
_SECTIONS = "mrope_section"
"""Of half a head that turn by time, height and width, in an order of the model's own."""
_LATENT = "qk_rope_head_dim"
"""Of attention over latent keys: its heads are as wide as their parts, not as ``head_dim``."""


def transformers_types() -> Iterator[Entry]:
    """The base model of every type that has one, as small as its configuration lets it be."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for kind in sorted(MODEL_MAPPING_NAMES.keys() & set(CONFIG_MAPPING.keys())):
        yield Entry("transformers", kind, kind, partial(transformers_model, kind))


class NotBuilt(Exception):
    """No tiny model of a type can be made, or it does not run: there is nothing to cover."""


def transformers_model(kind: str) -> nn.Module:
    """Narrow where that can be built and run, else only shallow."""
    narrow = None
    with suppress(Exception):
        narrow = _transformers_model(kind, _TINY)
        if _agrees_with_itself(narrow):
            return narrow
    try:
        shallow = _transformers_model(kind, _SHALLOW)
    except Exception as error:
        if narrow is not None:
            return narrow
        raise NotBuilt(f"{type(error).__name__}: {error}") from error
    return shallow


_LARGEST_SIDE = 384
"""Of images that are tried: larger ones take long."""
_SOUND = 16000
"""Steps of a sound that is tried."""


def _agrees_with_itself(model: nn.Module) -> bool:
    """Whether a model of texts, images or sounds runs at these sizes; others are taken to."""
    main = getattr(model, "main_input_name", "")
    if main == "input_ids":
        candidates = [torch.ones(1, 8, dtype=torch.int64)]
    elif main == "pixel_values":
        side = getattr(model.config, "image_size", None) or 224
        if not isinstance(side, int) or side > _LARGEST_SIDE:
            return True
        candidates = [torch.zeros(1, getattr(model.config, "num_channels", 3), side, side)]
    elif main == "input_values":
        bins = getattr(model.config, "num_mel_bins", None) or 80
        candidates = [torch.zeros(1, *shape) for shape in ((_SOUND,), (1, _SOUND), (1024, bins))]
    else:
        return True
    for inputs in candidates:
        with suppress(Exception), torch.no_grad():
            model.eval()(**{main: inputs})
            return True
    return False


def _transformers_model(kind: str, sizes: dict[str, int]) -> nn.Module:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    config = _shrunk(CONFIG_MAPPING[kind](), sizes)
    classes = MODEL_MAPPING[type(config)]
    model_class = classes[0] if isinstance(classes, tuple) else classes
    with torch.device("meta"):
        millions = _millions(model_class(config))
    if millions > SMALL_MILLIONS:
        raise NotBuilt(f"{millions:.0f} M parameters")
    return model_class(config)


def _shrunk(config: Any, sizes: dict[str, int], levels: int = 3) -> Any:
    for name, value in list(vars(config).items()):
        if name == "head_dim" and hasattr(config, _LATENT):
            continue
        if type(value) is int and name in sizes:
            setattr(config, name, min(value, sizes[name]))
        elif name == "vocab_size" and type(value) is int:
            setattr(config, name, min(value, _WORDS))
        elif re.fullmatch(r"(bos|eos|pad)_token_id", name) and type(value) is int:
            setattr(config, name, min(value, 1))
        elif name in _LAYERS and isinstance(value, list):
            kinds = [*dict.fromkeys(value), *value][:2]
            setattr(config, name, [kinds[0], "full_attention"] if set(kinds) == _LINEAR else kinds)
        elif isinstance(value, dict) and (_SECTIONS in value or "rope_type" in value):
            value[_SECTIONS] = [1, 1, 2]  # some have others by default
        elif name in ("attn_layer_indices", "hybrid_layer_ids"):
            setattr(config, name, [1])
        elif shown := re.fullmatch(r"(image|video|audio)_token_(id|index)", name):
            setattr(config, name, _PLACEHOLDERS[shown[1]])
        elif name == "num_experts_per_tok" and value is None:
            setattr(config, name, 2)
        elif hasattr(value, "model_type") and levels:
            _shrunk(value, sizes, levels - 1)
    return config


def transformers_models() -> Iterator[Entry]:
    """The best-known types, with heads of the classes that the GHN predicts."""
    import transformers as t

    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = {**text, "intermediate_size": 128, "vocab_size": 500}
    vit = {**text, "intermediate_size": 128, "image_size": 64, "patch_size": 16}
    gpt = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500}
    t5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    swin = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 7}
    convnext = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
    classes: dict[str, Any] = {"num_labels": CLASSES}

    def entry(group: str, model: str, config: str, **options: Any) -> Entry:
        def build() -> nn.Module:
            return getattr(t, model)(getattr(t, config)(**options))

        return Entry("transformers, heads", group, model, build)

    yield entry("ViT", "ViTForImageClassification", "ViTConfig", **vit, **classes)
    yield entry("ViT", "ViTModel", "ViTConfig", **vit)
    yield entry("DeiT", "DeiTForImageClassification", "DeiTConfig", **vit, **classes)
    yield entry("DeiT", "DeiTForImageClassificationWithTeacher", "DeiTConfig", **vit, **classes)
    yield entry("Swin", "SwinForImageClassification", "SwinConfig", **swin, **classes)
    yield entry(
        "ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", **convnext, **classes
    )
    yield entry("BERT", "BertModel", "BertConfig", **bert)
    yield entry("BERT", "BertForSequenceClassification", "BertConfig", **bert, **classes)
    yield entry("BERT", "BertForMaskedLM", "BertConfig", **bert)
    yield entry("GPT-2", "GPT2LMHeadModel", "GPT2Config", **gpt)
    yield entry("T5", "T5ForConditionalGeneration", "T5Config", **t5, vocab_size=500)
    yield entry(
        "Llama", "LlamaForCausalLM", "LlamaConfig", **bert, num_key_value_heads=2, head_dim=16
    )


# --- libraries of which classes are listed by name ------------------------------------------------


def _by_class(
    zoo: str,
    package: str,
    options: dict[str, dict[str, Any]],
    shapes: dict[str, dict[str, tuple[int, ...]]] | None = None,
) -> Iterator[Entry]:
    """Of a package's classes, each with what it is built with; some with shapes of inputs."""
    from importlib import import_module

    for name, values in options.items():
        path, _, attribute = name.rpartition(".")

        def build(path: str = path, attribute: str = attribute, values: Any = values) -> nn.Module:
            module = import_module(f"{package}.{path}" if path else package)
            model: nn.Module = getattr(module, attribute)(**values)
            return model

        given = (shapes or {}).get(name)
        inputs = {key: torch.ones(shape) for key, shape in given.items()} if given else None
        yield Entry(zoo, attribute, name, build, inputs)


_BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_UNET = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
_CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_TWO = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
_DIT = {**_TWO, "sample_size": 16, "patch_size": 2, "in_channels": 4}

DIFFUSERS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {"sample_size": 32, **_BLOCKS, **_UNET},
    "UNet2DConditionModel": {"sample_size": 16, "cross_attention_dim": 32, **_BLOCKS, **_CROSS},
    "UNet1DModel": {"block_out_channels": (32, 32, 64), "extra_in_channels": 64},
    "AutoencoderKL": {
        **{"sample_size": 32, **_BLOCKS},
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "VQModel": {"sample_size": 32, "num_vq_embeddings": 32, "block_out_channels": (32,)},
    "AutoencoderTiny": {},
    "ControlNetModel": {
        **{"cross_attention_dim": 32, "block_out_channels": (32, 64), "norm_num_groups": 8},
        "down_block_types": _CROSS["down_block_types"],
        "conditioning_embedding_out_channels": (16, 32),
    },
    "DiTTransformer2DModel": {**_DIT, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
    "PixArtTransformer2DModel": {
        **{**_DIT, "cross_attention_dim": 32, "caption_channels": 32, "norm_num_groups": 4},
        **{"out_channels": 8, "use_additional_conditions": False},
    },
    "SD3Transformer2DModel": {
        **{**_DIT, "joint_attention_dim": 32, "caption_projection_dim": 32, "out_channels": 4},
        **{"pooled_projection_dim": 32, "pos_embed_max_size": 16},
    },
    "PriorTransformer": {
        **_TWO,
        "embedding_dim": 32,
        "num_embeddings": 7,
        "additional_embeddings": 4,
    },
}

DIFFUSERS_INPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "UNet1DModel": {"sample": (2, 2, 64), "timestep": (2,)},
    "ControlNetModel": {
        **{"sample": (2, 4, 16, 16), "timestep": (2,), "encoder_hidden_states": (2, 8, 32)},
        "controlnet_cond": (2, 3, 32, 32),
    },
    "PriorTransformer": {
        **{"hidden_states": (2, 32), "timestep": (2,), "proj_embedding": (2, 32)},
        "encoder_hidden_states": (2, 7, 32),
    },
}

_2D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_STEPS = {"channels": (8, 16, 32), "strides": (2, 2)}
_CODES = {"channels": (8, 16, 32), "strides": (2, 2, 2)}

MONAI: dict[str, dict[str, Any]] = {
    "UNet": {**_2D, **_STEPS, "num_res_units": 1},
    "BasicUNet": {**_2D, "features": (8, 8, 16, 16, 32, 8)},
    "BasicUNetPlusPlus": {**_2D, "features": (8, 8, 16, 16, 32, 8)},
    "AttentionUnet": {**_2D, **_STEPS},
    "DynUNet": {
        **{**_2D, "kernel_size": [3, 3, 3], "strides": [1, 2, 2]},
        "upsample_kernel_size": [2, 2],
    },
    "SegResNet": {**_2D, "init_filters": 8},
    "SegResNetVAE": {"input_image_size": (64, 64), **_2D, "init_filters": 8},
    "VNet": {**_2D},
    "HighResNet": {**_2D},
    "UNETR": {"in_channels": 1, "out_channels": 2, "img_size": 32, "hidden_size": 96},
    "SwinUNETR": {"in_channels": 1, "out_channels": 2, "feature_size": 12},
    "DenseNet121": {**_2D, "out_channels": CLASSES},
    "EfficientNetBN": {"model_name": "efficientnet-b0", "pretrained": False, "in_channels": 1},
    "ResNet": {
        **{"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [16, 32, 48, 64]},
        **{"spatial_dims": 3, "n_input_channels": 1, "num_classes": CLASSES},
    },
    "SEResNet50": {"spatial_dims": 2, "in_channels": 3, "num_classes": CLASSES},
    "AutoEncoder": {**_2D, **_CODES},
    "VarAutoEncoder": {
        **{"spatial_dims": 2, "in_shape": (1, 32, 32), "out_channels": 1, "latent_size": 8},
        **_CODES,
    },
    "Regressor": {"in_shape": (1, 32, 32), "out_shape": 1, **_STEPS},
    "Classifier": {"in_shape": (1, 32, 32), "classes": CLASSES, **_STEPS},
    "Generator": {"latent_shape": (16,), "start_shape": (8, 4, 4), **_STEPS},
    "ViT": {
        **{"in_channels": 1, "img_size": (32, 32), "patch_size": (8, 8), "spatial_dims": 2},
        **{"hidden_size": 48, "mlp_dim": 96, "num_heads": 4, "num_layers": 2},
    },
    "FlexibleUNet": {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"},
    "DiffusionModelUNet": {
        **{**_2D, "channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1},
        **{"num_head_channels": 8, "norm_num_groups": 4},
    },
    "AutoencoderKL": {
        **{**_2D, "channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1},
        **{"latent_channels": 3, "norm_num_groups": 4},
    },
}

_VIT = {"image_size": 64, "patch_size": 16, "num_classes": CLASSES, "dim": 48, "depth": 2}
_HEADS = {"heads": 3, "mlp_dim": 96}

VIT_PYTORCH: dict[str, dict[str, Any]] = {
    "ViT": {**_VIT, **_HEADS},
    "SimpleViT": {**_VIT, **_HEADS},
    "deepvit.DeepViT": {**_VIT, **_HEADS},
    "cait.CaiT": {**_VIT, **_HEADS, "cls_depth": 1},
    "pit.PiT": {**_VIT, **_HEADS, "patch_size": 8, "depth": (1, 1)},
    "levit.LeViT": {
        **{"image_size": 64, "num_classes": CLASSES, "dim": (32, 48), "depth": 1},
        **{"heads": (2, 4), "mlp_mult": 2, "stages": 2},
    },
    "cct.CCT": {
        **{"img_size": 64, "embedding_dim": 48, "num_layers": 2, "num_heads": 3},
        **{"mlp_ratio": 2, "num_classes": CLASSES},
    },
    "crossformer.CrossFormer": {"num_classes": CLASSES, "depth": (1,) * 4},
    "nest.NesT": {
        **{"image_size": 64, "patch_size": 4, "dim": 24, "heads": 3, "num_hierarchies": 3},
        **{"block_repeats": (1, 1, 1), "num_classes": CLASSES},
    },
    "xcit.XCiT": {**_VIT, **_HEADS, "cls_depth": 1},
    "max_vit.MaxViT": {"num_classes": CLASSES, "dim": 32, "depth": (1, 1)},
    "twins_svt.TwinsSVT": {
        **{f"s{i}_emb_dim": 16 * i for i in (1, 2, 3, 4)},
        **{"num_classes": CLASSES, "s3_depth": 1},
    },
    "regionvit.RegionViT": {"num_classes": CLASSES, "dim": (16, 32, 48, 64), "depth": (1,) * 4},
    "cvt.CvT": {"num_classes": CLASSES},
    "vit_for_small_dataset.ViT": {**_VIT, **_HEADS},
    "parallel_vit.ViT": {**_VIT, **_HEADS},
    "simple_vit_1d.SimpleViT": {
        **{"seq_len": 64, "patch_size": 8, "num_classes": CLASSES, "dim": 48, "depth": 2, **_HEADS}
    },
}

_TEXT = {"context_length": 16, "vocab_size": 160, "width": 32, "heads": 2, "layers": 2}
_PATCHED = {"layers": 2, "width": 64, "patch_size": 16, "image_size": 64}

OPEN_CLIP: dict[str, dict[str, Any]] = {
    "CLIP": {"embed_dim": 32, "vision_cfg": _PATCHED, "text_cfg": _TEXT},
    "CustomTextCLIP": {"embed_dim": 32, "vision_cfg": _PATCHED, "text_cfg": _TEXT},
    "CoCa": {
        **{"embed_dim": 32, "vision_cfg": {**_PATCHED, "attentional_pool": True}},
        **{"text_cfg": _TEXT, "multimodal_cfg": {**_TEXT, "mlp_ratio": 4}},
    },
    "model.ModifiedResNet": {
        "layers": [1, 1, 1, 1],
        "output_dim": 32,
        "heads": 8,
        "image_size": 64,
    },
}


def smp_models() -> Iterator[Entry]:
    import segmentation_models_pytorch as smp

    for name in smp.MODEL_ARCHITECTURES_MAPPING:
        encoder = "tu-vit_tiny_patch16_224" if name == "dpt" else "resnet18"
        build = partial(smp.create_model, name, encoder, encoder_weights=None, classes=5)
        yield Entry("segmentation-models-pytorch", name, name, build)


def pytorchcv_models() -> Iterator[Entry]:
    """The first model of each family; a family is what stands before the first digit."""
    from pytorchcv import model_provider

    seen = set()
    for name, build in model_provider._models.items():
        family = re.split(r"[\d_]", name)[0]
        if family not in seen:
            seen.add(family)
            yield Entry("pytorchcv", family, name, partial(build, pretrained=False))


def entries(zoo: str, max_millions: float) -> Iterator[Entry]:
    """Of one zoo, or of all that are installed."""
    for name, (package, models) in ZOOS.items():
        if zoo in (name, "all") and find_spec(package) is not None:
            yield from models(max_millions) if name in ("torchvision", "timm") else models()


ZOOS: dict[str, tuple[str, Callable[..., Iterator[Entry]]]] = {
    "torchvision": ("torchvision", torchvision_models),
    "timm": ("timm", timm_models),
    "transformers, heads": ("transformers", transformers_models),
    "transformers": ("transformers", transformers_types),
    "diffusers": (
        "diffusers",
        partial(_by_class, "diffusers", "diffusers", DIFFUSERS, DIFFUSERS_INPUTS),
    ),
    "segmentation-models-pytorch": ("segmentation_models_pytorch", smp_models),
    "monai": ("monai", partial(_by_class, "monai", "monai.networks.nets", MONAI)),
    "pytorchcv": ("pytorchcv", pytorchcv_models),
    "vit-pytorch": ("vit_pytorch", partial(_by_class, "vit-pytorch", "vit_pytorch", VIT_PYTORCH)),
    "open_clip": ("open_clip", partial(_by_class, "open_clip", "open_clip", OPEN_CLIP)),
}
"""{name: (package, its models)}."""
