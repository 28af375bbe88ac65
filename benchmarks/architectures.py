"""The networks of the coverage benchmark: the zoo, and third-party ones built small from configs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from torch import nn

from prunus.zoo import build, is_text, zoo_names

Built = tuple[nn.Module, Mapping[str, torch.Tensor]]

_VISION: dict[str, dict[str, Any]] = {
    "ResNet": {
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 48],
        "depths": [1, 2, 1, 1],
        "layer_type": "bottleneck",
    },
    "RegNet": {
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 48, 64],
        "depths": [1, 1, 2, 1],
        "groups_width": 8,
    },
    "ConvNext": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    "ConvNextV2": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "EfficientNet": {
        "width_coefficient": 0.35,
        "depth_coefficient": 0.35,
        "hidden_dim": 448,
        "image_size": 64,
    },
    "MobileViT": {
        "hidden_sizes": [24, 32, 40],
        "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 64],
        "image_size": 64,
    },
    "Bit": {
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 96, 128],
        "depths": [1, 1, 1, 1],
        "num_groups": 8,
    },
    "Levit": {
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
        "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]],
    },
    "PoolFormer": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
    "Cvt": {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    "Segformer": {
        "hidden_sizes": [16, 32, 48, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 3, 4],
    },
    "ViT": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 64,
    },
    "DeiT": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 64,
    },
    "Beit": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 64,
    },
    "Swin": {
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "image_size": 64,
        "window_size": 4,
    },
    "Dinov2": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    },
    "Pvt": {
        "hidden_sizes": [16, 32, 48, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 3, 4],
        "image_size": 64,
    },
    "Van": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
    "FocalNet": {"embed_dim": 24, "depths": [1, 1, 1, 1], "image_size": 64},
}
_TEXT_SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 120,
    "max_position_embeddings": 64,
}
_TEXT: dict[str, dict[str, Any]] = {
    "Bert": _TEXT_SMALL,
    "Roberta": _TEXT_SMALL,
    "DistilBert": {
        "dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 96,
        "vocab_size": 120,
        "max_position_embeddings": 64,
    },
    "Albert": {**_TEXT_SMALL, "embedding_size": 24},
    "Electra": {**_TEXT_SMALL, "embedding_size": 24},
    "DebertaV2": {
        **_TEXT_SMALL,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "MPNet": _TEXT_SMALL,
    "SqueezeBert": {
        **_TEXT_SMALL,
        "embedding_size": 48,
        "q_groups": 2,
        "k_groups": 2,
        "v_groups": 2,
        "post_attention_groups": 1,
        "intermediate_groups": 2,
        "output_groups": 2,
    },
    "Funnel": {
        "block_sizes": [1, 1],
        "d_model": 48,
        "n_head": 4,
        "d_head": 12,
        "d_inner": 96,
        "vocab_size": 120,
    },
    "GPT2": {
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 120,
        "n_positions": 64,
        "pad_token_id": 0,
        "use_cache": False,
    },
    "OPT": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "vocab_size": 120,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 48,
        "use_cache": False,
    },
    "Llama": {**_TEXT_SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "use_cache": False},
    "Qwen2": {**_TEXT_SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "use_cache": False},
}


def _vision(name: str) -> Built:
    config = getattr(hf, f"{name}Config")(num_labels=5, **_VISION[name])
    side = getattr(config, "image_size", None) or 64
    side = side if isinstance(side, int) and side <= 64 else 64
    return _model(f"{name}ForImageClassification", config), {
        "pixel_values": torch.randn(2, 3, side, side)
    }


def _model(name: str, config: Any) -> nn.Module:
    made: nn.Module = getattr(hf, name)(config)
    return made


def _text(name: str) -> Built:
    config = getattr(hf, f"{name}Config")(num_labels=3, **_TEXT[name])
    ids = torch.randint(3, 119, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    network = _model(f"{name}ForSequenceClassification", config)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "pad_token_id" in _TEXT[name] or name == "OPT":
        inputs = {"input_ids": ids}  # decoders find the last token by its padding: none here
    return network, inputs


class _T5(nn.Module):
    """T5's encoder with a classifier on its mean: the encoder's own output is then no network output."""

    def __init__(self) -> None:
        super().__init__()
        config = hf.T5Config(
            d_model=48,
            d_kv=12,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            vocab_size=120,
            num_decoder_layers=1,
        )
        self.encoder = hf.T5EncoderModel(config)
        self.classifier = nn.Linear(48, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids).last_hidden_state
        logits: torch.Tensor = self.classifier(hidden.mean(dim=1))
        return logits


def _t5(_: str) -> Built:
    return _T5(), {"input_ids": torch.randint(3, 119, (2, 16))}


def _zoo(name: str) -> Built:
    shape = (2, 1, 8, 8) if name == "digits_cnn" else (2, 3, 32, 32)
    return build(name), {"x": torch.randn(shape)}


def enliven(network: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Give random weights a working network's statistics, in place: else deep ones output a constant.

    Norm scales and biases get random values (a leaked constant must show) and batch-norm statistics
    come from three passes in train mode.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1:
                centre = 1.0 if name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
        network.train()
        for _ in range(3):
            network(**inputs)
    network.eval()


def architectures() -> dict[str, tuple[str, Callable[[str], Built]]]:
    """Name to (source, builder). Call ``torch.manual_seed`` before building: weights are random."""
    table: dict[str, tuple[str, Callable[[str], Built]]] = dict.fromkeys(
        (name for name in zoo_names() if not is_text(name)), ("zoo", _zoo)
    )
    table |= dict.fromkeys(_VISION, ("transformers", _vision))
    table |= dict.fromkeys(_TEXT, ("transformers", _text))
    table["T5Encoder"] = ("transformers", _t5)
    return table
