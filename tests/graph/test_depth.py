"""Layers that stay know their new places, and configs the layers: caches, kinds of layers, files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.artifact import load, save
from prunus.graph import certify_rebuild, cut, plan_of
from prunus.plan import Bits, KeepLayers, Plan
from prunus.records import Source

transformers = pytest.importorskip("transformers")

KEEP = [False, True, False, True]
WORDS: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    **WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "head_dim": 8,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
}
GPT2 = {**WORDS, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}
OPT = {
    **WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "ffn_dim": 24,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 32,
}
QWEN3_MOE = {
    **LLAMA,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "mlp_only_layers": [0, 1],  # the others choose among experts
}
DEEPSEEK = {
    **WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
}
STACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("transformer.h", GPT2),
    "llama": ("model.layers", LLAMA),
    "qwen3": ("model.layers", LLAMA),
    "gemma2": ("model.layers", LLAMA),  # attends near by and everywhere in turns
    "opt": ("model.decoder.layers", OPT),
    "qwen3_moe": ("model.layers", QWEN3_MOE),
    "deepseek_v3": ("model.layers", DEEPSEEK),
}


def texts() -> dict[str, Tensor]:
    ids = torch.randint(3, 40, (3, 8), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def made(kind: str, auto: str = "AutoModelForSequenceClassification") -> tuple[Any, Plan]:
    """A network of four layers, and the plan that keeps the second and the last."""
    stack, sizes = STACKS[kind]
    config = transformers.AutoConfig.for_model(kind, **sizes)
    network = getattr(transformers, auto).from_config(config).eval()
    return network, plan_of(network, [KeepLayers(stack=stack, keep=Bits.pack(KEEP))])


@pytest.mark.parametrize("kind", list(STACKS))
def test_decoders_run_without_layers_and_are_saved_by_their_library(
    kind: str, tmp_path: Path
) -> None:
    network, plan = made(kind)
    assert certify_rebuild(network, plan, {}, texts()).passed
    small: Any = cut(network, plan)
    small.save_pretrained(tmp_path)
    back = type(small).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(back(**texts()).logits, small(**texts()).logits)
    assert {getattr(m, "layer_idx", 0) for m in small.modules()} == {0, 1}
    assert {getattr(m, "layer_idx", 0) for m in network.modules()} == {0, 1, 2, 3}
    assert network.config.num_hidden_layers == 4


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_a_cache_of_a_shorter_stack_gives_what_the_whole_text_gives(kind: str) -> None:
    network, plan = made(kind, "AutoModelForCausalLM")
    small: Any = cut(network, plan)
    ids = texts()["input_ids"]
    with torch.no_grad():
        first = small(input_ids=ids[:, :5], use_cache=True)
        rest = small(input_ids=ids[:, 5:], past_key_values=first.past_key_values)
        whole = small(input_ids=ids).logits
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole)


def test_kinds_of_layers_are_those_of_the_layers_that_stay() -> None:
    network, plan = made("gemma2")
    before = list(network.config.layer_types)
    small: Any = cut(network, plan)
    assert small.config.layer_types == [before[1], before[3]]
    assert {id(m.config) for m in small.modules() if hasattr(m, "config")} == {id(small.config)}
    assert network.config.layer_types == before


def test_an_artifact_of_a_shorter_stack_loads(tmp_path: Path) -> None:
    network, plan = made("qwen3")
    small = cut(network, plan).eval()
    arguments = {"model_type": "qwen3", "num_labels": 2, "task": "text", **LLAMA}
    source = Source(model="hf:config", arguments=arguments)
    save(tmp_path / "a", small, source=source, plans=[plan], example_inputs=texts())
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "a")(**texts()).logits, small(**texts()).logits)


@pytest.mark.parametrize(
    ("stack", "depths"),
    [("transformer.encoder.block", (2, 4)), ("transformer.decoder.block", (4, 2))],
)
def test_of_two_stacks_the_config_knows_which_is_shorter(
    stack: str, depths: tuple[int, int]
) -> None:
    config = transformers.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        num_heads=2,
        d_ff=24,
        num_layers=4,
        num_decoder_layers=4,
        decoder_start_token_id=0,
    )
    network = transformers.T5ForSequenceClassification(config).eval()
    keep = Bits.pack([True, False, True, False])  # the first one has the positions of all
    small: Any = cut(network, plan_of(network, [KeepLayers(stack=stack, keep=keep)]))
    assert (small.config.num_layers, small.config.num_decoder_layers) == depths
    own = (small.transformer.encoder.config.num_layers, small.transformer.decoder.config.num_layers)
    assert own == depths


def test_a_config_inside_another_is_the_one_that_its_model_has() -> None:
    class Config:
        def __init__(self, **entries: Any) -> None:
            vars(self).update(entries)

        def to_dict(self) -> dict[str, Any]:
            return vars(self)

    class Model(nn.Module):
        def __init__(self, config: Config, **parts: nn.Module) -> None:
            super().__init__()
            self.config = config
            for name, part in parts.items():
                self.add_module(name, part)

    inner = Config(num_hidden_layers=3, layer_types=["a", "b", "c"], sizes=[1, 2, 3])
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    whole = Model(
        Config(text=inner, num_layers=7), text=Model(inner, layers=layers), image=nn.Linear(2, 2)
    )
    edit = KeepLayers(stack="text.layers", keep=Bits.pack([True, False, True]))
    small: Any = cut(whole, plan_of(whole, [edit]))
    found = small.text.config
    assert (found.num_hidden_layers, found.layer_types, found.sizes) == (2, ["a", "c"], [1, 2, 3])
    assert small.config.text is found
    assert small.config.num_layers == 7
    assert vars(whole.config)["text"] is inner
    assert vars(inner)["num_hidden_layers"] == 3


class Weighed(nn.Module):
    """A layer whose number is a part of what it computes, around one that counts for itself."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.linear, self.layer_idx = nn.Linear(6, 6), number
        self.inner = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        for at, layer in enumerate(self.inner):
            layer.layer_id = at  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.linear(x).relu() / (self.layer_idx + 1)
        for layer in self.inner:
            x = x + layer(x).relu() * (layer.layer_id == 2)
        return x


class Stacked(nn.Module):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(*map(Weighed, range(4)))
        if config is not None:
            self.config = config


def test_numbers_that_a_forward_pass_computes_with_stay() -> None:
    """No cache of transformers is there to keep anything by them."""
    torch.manual_seed(0)
    network = Stacked().layers.eval()
    outer = nn.Sequential(network)
    plan = plan_of(outer, [KeepLayers(stack="0", keep=Bits.pack(KEEP))])
    assert certify_rebuild(outer, plan, {}, torch.randn(3, 6)).passed
    small: Any = cut(outer, plan)
    assert [layer.layer_idx for layer in small[0]] == [1, 3]


def test_a_number_that_is_no_place_in_every_layer_stays() -> None:
    """In the third layer, the third layer in it is no layer of the stack."""
    network = Stacked(transformers.GPT2Config(n_layer=4))
    plan = plan_of(network, [KeepLayers(stack="layers", keep=Bits.pack([False, True, True, True]))])
    layers: Any = cut(network, plan).layers
    assert [layer.layer_idx for layer in layers] == [0, 1, 2]
    assert [inner.layer_id for layer in layers for inner in layer.inner] == [0, 1, 2] * 3
