"""The zoo's networks have the published sizes, scale by width, and build the same every time."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from prunus.data import load_data
from prunus.errors import InputError
from prunus.records import Source
from prunus.zoo import PadShortcut, build, is_text, normalization, zoo_names

IMAGES = [name for name in zoo_names() if not is_text(name)]


def params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def image(model: str, batch: int = 1) -> Tensor:
    return torch.zeros(batch, 1, 8, 8) if model == "digits_cnn" else torch.zeros(batch, 3, 32, 32)


# ResNet-44: 464,154 + (853,018 - 464,154) / 2, as each step in depth adds the same blocks.
# ResNet-50: torchvision's 25,557,032 less its head (2,049,000) and the 7x7 stem (9,408),
# plus a 3x3 stem (1,728) and 2048 * 10 + 10. The others: the papers' repositories.
@pytest.mark.parametrize(
    ("model", "num_classes", "expected"),
    [
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("resnet44", 10, 658_586),
        ("resnet56", 10, 853_018),
        ("resnet18", 10, 11_173_962),
        ("resnet50", 10, 23_520_842),
        ("vgg16_bn", 10, 14_728_266),
        ("mobilenet_v2", 100, 2_351_972),
    ],
)
def test_parameter_counts_are_the_published_ones(
    model: str, num_classes: int, expected: int
) -> None:
    assert params(build(model, num_classes=num_classes)) == expected


@pytest.mark.parametrize(
    ("model", "num_classes", "mega_macs"),
    [("vgg16_bn", 10, 313.20), ("resnet18", 10, 555.42), ("mobilenet_v2", 100, 24.58)],
)
def test_macs_on_32x32_are_the_published_ones(
    model: str, num_classes: int, mega_macs: float
) -> None:
    network = build(model, num_classes=num_classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image(model))
    assert round(counter.get_total_flops() / 2 / 1e6, 2) == mega_macs


@pytest.mark.parametrize("model", IMAGES)
def test_forward_gives_one_logit_per_class_at_any_image_size(model: str) -> None:
    network = build(model, num_classes=7, width=0.25, in_channels=2).eval()
    with torch.no_grad():
        for side in (32, 45):
            assert network(torch.randn(3, 2, side, side)).shape == (3, 7)


@pytest.mark.parametrize("model", [name for name in IMAGES if name != "resnet50"])
@pytest.mark.parametrize("width", [0.01, 0.3, 0.5])
def test_width_scales_every_channel_count(model: str, width: float) -> None:
    wide, narrow = build(model), build(model, width=width)
    channels = {
        name: len(module.weight)
        for name, module in wide.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    expansion = {  # MobileNetV2 expands the scaled count: 6 * round(c * width)
        name for name in channels if model == "mobilenet_v2" and ".conv.0." in name
    } | {name for name in channels if model == "mobilenet_v2" and ".conv.1." in name}
    checked = 0
    for name, module in narrow.named_modules():
        if isinstance(module, nn.BatchNorm2d) and name not in expansion:
            assert len(module.weight) == max(1, round(channels[name] * width)), name
            checked += 1
    assert checked > 3
    with torch.no_grad():
        assert narrow.eval()(image(model, 2)).shape == (2, 10)


def test_width_scales_both_counts_of_a_bottleneck() -> None:
    block = build("resnet50", width=0.3).get_submodule("layer2.1")
    shapes = [list(p.shape) for n, p in block.named_parameters() if n.startswith("conv")]
    # round(0.3 * 512) = 154 outside, round(0.3 * 128) = 38 inside
    assert shapes == [[38, 154, 1, 1], [38, 38, 3, 3], [154, 38, 1, 1]]


def test_names_are_those_of_the_origins() -> None:
    assert set(build("resnet20").state_dict()) >= {
        "conv1.weight",
        "bn1.running_var",
        "layer3.2.conv2.weight",
        "layer2.0.bn1.bias",
        "linear.bias",
    }
    assert set(build("resnet18").state_dict()) >= {
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.bias",
        "fc.weight",
    }
    assert set(build("vgg16_bn").state_dict()) >= {
        "features.0.bias",
        "features.41.running_mean",
        "classifier.weight",
    }
    assert set(build("mobilenet_v2").state_dict()) >= {
        "features.0.0.weight",
        "features.1.conv.1.weight",
        "features.17.conv.3.bias",
        "features.18.1.weight",
        "classifier.1.weight",
    }


@given(
    start=st.integers(1, 20),
    extra=st.integers(0, 20),
    side=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_pad_shortcut_equals_slicing_and_padding(
    start: int, extra: int, side: int, seed: int
) -> None:
    x = torch.randn(2, start, side, side, generator=torch.Generator().manual_seed(seed))
    padding = (0, 0, 0, 0, extra // 2, extra - extra // 2)
    expected = functional.pad(x[:, :, ::2, ::2], padding)
    assert torch.equal(PadShortcut(start, start + extra)(x), expected)


def test_pad_shortcut_of_the_paper_has_a_quarter_of_zeros_on_both_sides() -> None:
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    shortcut = PadShortcut(16, 32)
    assert torch.equal(shortcut(x), expected)
    assert shortcut.source.tolist() == [16] * 8 + list(range(16)) + [16] * 8
    assert not shortcut.state_dict()


def test_pad_shortcut_can_be_cut_by_slicing_its_source() -> None:
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    shortcut = PadShortcut(4, 8)
    whole = shortcut(x)
    keep_in, keep_out = [0, 3], [0, 2, 5, 7]  # outputs 2 and 5 copy inputs 0 and 3
    shortcut.source = torch.tensor([2, 0, 1, 2])
    assert torch.equal(shortcut(x[:, keep_in]), whole[:, keep_out])


def test_build_is_seeded_and_leaves_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    first, second = build("digits_cnn", seed=3), build("digits_cnn", seed=3)
    other = build("digits_cnn", seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    key = "conv1.weight"
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_normalization_is_per_model() -> None:
    assert normalization("resnet56")[0] == (0.485, 0.456, 0.406)
    assert normalization("vgg16_bn") == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert normalization("hf:any/thing")[1] == (0.229, 0.224, 0.225)


def test_normalization_of_the_digits_makes_them_standard() -> None:
    mean, std = normalization("digits_cnn")
    data = load_data("digits", mean=mean, std=std)
    inputs = []
    for split in (data.train, data.search, data.test):
        for x, _ in split.batches(2000):
            assert isinstance(x, Tensor)
            inputs.append(x)
    whole = torch.cat(inputs)
    assert abs(float(whole.mean())) < 5e-3
    assert abs(float(whole.std()) - 1) < 5e-3


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (
            "resnet19",
            {},
            r"model 'resnet19' is unknown: use one of .*digits_cnn, .*vgg16_bn.*; netw",
        ),
        ("net.py:make", {}, r"is unknown: .*files go by prunus.Source\(model=...\)"),
        ("resnet20", {"breadth": 1}, r"argument 'breadth' .*arguments are num_classes, width"),
        ("resnet20", {"width": 0}, r"argument 'width' of model 'resnet20' is 0: .*greater than 0"),
        ("resnet20", {"width": float("nan")}, r"argument 'width' of model 'resnet20' is nan"),
        ("resnet20", {"num_classes": 0}, r"argument 'num_classes' .* is 0: .*greater than"),
    ],
    ids=["name", "file", "argument", "width-zero", "width-nan", "classes"],
)
def test_wrong_arguments_are_named(model: str, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(model, **arguments)


def test_a_source_is_no_name() -> None:
    source: Any = Source(model="resnet20")
    with pytest.raises(InputError, match=r"model is a Source: .*prunus.zoo.load_source"):
        build(source)
