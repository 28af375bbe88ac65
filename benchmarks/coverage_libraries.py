"""Which networks of timm and torchvision can be cut, as those libraries build them.

    python benchmarks/coverage_libraries.py               # all, one to two hours on two cores
    python benchmarks/coverage_libraries.py swin vit_b    # some, printed; rows that are kept stay
    python benchmarks/coverage_libraries.py table         # the record of those measured so far

One small network or a few of each module of a library, at its own resolution and with random weights; of
torchvision those that give classes or masks for one input. Modules of timm whose smallest has more
than 88 million parameters are left out, as are NASNet and PNASNet, whose smallest is slow. What
*certified* means is in `coverage.py`. ONNX is not written here. A row is kept in `runs/` as soon as
it is measured, with the environment: a run that was stopped goes on at the same commit, on the same
machine with the same versions.

Wants the extra `zoo` and a PyTorch that torchvision was built for.
"""

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from architectures import Built
from coverage import RANDOM_HALVES, SEED, measure
from record import START, environment, write_json, write_results

from prunus.records import Source
from prunus.zoo import load_source

CELLS = Path("runs/coverage_libraries")
LIBRARIES = ("timm", "torchvision")
TIMM = """
beit_base_patch16_224 halonet_h1 gernet_s repvgg_a0 mobileone_s0 gcresnext26ts cait_xxs24_224
coat_lite_tiny convit_tiny convmixer_768_32 convnext_atto convnextv2_atto cpubone_nano
crossvit_tiny_240 csatv2 darknet17 cspnext_tiny davit_tiny deit_tiny_patch16_224
densenet121 dla46_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_b0 mixnet_s efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224
vit_base_patch16_rope_mixed_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnetv2_b0 hiera_tiny_224
hieradet_small hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3
inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto coatnet_pico_rw_224
maxvit_pico_rw_256 poolformer_s12 convformer_s18 caformer_s18 mixer_s32_224 gmlp_ti16_224
resmlp_12_224 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium_075
mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap
nest_tiny nextvit_small eca_nfnet_l0 nf_regnet_b0 pit_ti_224 pvt_v2_b0 qwen3_vit_88m
rdnet_tiny regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvit_m0_9 res2net50_48w_2s
resnest14d resnet10t seresnet18 ecaresnet26t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18
sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m
twins_pcpvt_small twins_svt_small vgg11_bn visformer_tiny vit_tiny_patch16_224
vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224
volo_d1_224 ese_vovnet19b_slim legacy_xception xception41 xcit_nano_12_p16_224
"""
TORCHVISION = """
alexnet convnext_tiny deeplabv3_mobilenet_v3_large densenet121 efficientnet_b0 efficientnet_v2_s
fcn_resnet50 googlenet inception_v3 lraspp_mobilenet_v3_large maxvit_t mc3_18 r2plus1d_18
mnasnet0_5 mobilenet_v2 mobilenet_v3_small mvit_v2_s regnet_x_400mf regnet_y_400mf resnet18
resnext50_32x4d s3d shufflenet_v2_x0_5 squeezenet1_1 swin3d_t swin_t swin_v2_t vgg11_bn vit_b_32
"""
# Of torchvision, whose networks do not tell their inputs: sides in pixels, frames before them of video.
IMAGE, CLIP = (3, 224, 224), (3, 16, 112, 112)
SHAPES = {
    "inception_v3": (3, 299, 299),
    "mc3_18": CLIP,
    "mvit_v2_s": (3, 16, 224, 224),
    "r2plus1d_18": CLIP,
    "s3d": (3, 16, 224, 224),
    "swin3d_t": CLIP,
}
# Whose constructors load weights of a backbone unless they are told not to.
ON_BACKBONE = ("deeplabv3", "fcn", "lraspp")


def main(patterns: list[str]) -> None:
    warnings.simplefilter("ignore")
    networks = [
        *(("timm", name) for name in TIMM.split()),
        *(("torchvision", name) for name in TORCHVISION.split()),
    ]
    if patterns != ["table"]:
        _one_environment([*_kept(networks), {"environment": _here()}])
        for source, name in networks:
            if not patterns or any(pattern in name for pattern in patterns):
                _measure(source, name, again=bool(patterns))
    if patterns in ([], ["table"]):
        _write(networks)


def _measure(source: str, name: str, *, again: bool) -> None:
    cell = _cell(source, name)
    if cell.is_file() and not again:
        return
    started = time.perf_counter()
    row = measure(name, source, _builder(source), onnx=False)
    print(f"{source}:{name}: {time.perf_counter() - started:.0f} s {row}", flush=True)
    if cell.is_file():
        print(f"not kept: {cell} is there; remove it to replace it", flush=True)
        return
    write_json(cell, {"row": row, "environment": _here()})


def _cell(source: str, name: str) -> Path:
    return CELLS / str(START.commit) / f"{source}-{name}.json"


def _here() -> dict[str, Any]:
    """Environment of this process, with the libraries that the networks are of."""
    found = environment()
    return found | {"versions": found["versions"] | {name: version(name) for name in LIBRARIES}}


def _kept(networks: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Cells of this commit that are measured."""
    cells = [_cell(source, name) for source, name in networks]
    return [json.loads(cell.read_text(encoding="utf-8")) for cell in cells if cell.is_file()]


def _one_environment(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The environment that all cells were measured in.

    Raises:
        SystemExit: There are several, or there is no cell.
    """
    found = [cell["environment"] for cell in cells]
    if not found:
        raise SystemExit(f"no row of commit {START.commit} is kept in {CELLS}: measure first")
    parts = [name for name in found[0] if any(one.get(name) != found[0][name] for one in found)]
    if parts:
        raise SystemExit(
            f"rows in {CELLS / str(START.commit)} differ in {', '.join(parts)}: one record is of one "
            "environment; go on where they were measured, or remove them"
        )
    return dict(found[0])


def _write(networks: list[tuple[str, str]]) -> None:
    """Write what is measured; each row says of how many networks of its library."""
    aim = Counter(source for source, _ in networks)
    cells = _kept(networks)
    ran = _one_environment(cells)
    write_results(
        "coverage_libraries",
        [{**cell["row"], "of": aim[cell["row"]["source"]]} for cell in cells],
        ran=ran,
        seed=SEED,
        kept_share=0.5,
        samples=2,
        random_halves=RANDOM_HALVES,
        versions={name: ran["versions"][name] for name in LIBRARIES},
    )


def _builder(source: str) -> Callable[[str], Built]:
    def build(name: str) -> Built:
        arguments: dict[str, Any] = {"pretrained": False}
        if name.startswith(ON_BACKBONE):
            arguments["weights_backbone"] = None
        network = load_source(Source(model=f"{source}:{name}", arguments=arguments))
        shape = (
            network.pretrained_cfg["input_size"] if source == "timm" else SHAPES.get(name, IMAGE)
        )
        first = next(iter(signature(network.forward).parameters))
        return network, {first: torch.randn(2, *shape)}

    return build


if __name__ == "__main__":
    main(sys.argv[1:])
