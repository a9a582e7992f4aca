from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from biasdiff.errors import ModelError
from biasdiff.models.lora import (
    LoraSettings,
    add_adapter,
    canonical_name,
    default_targets,
    linear_names,
    load_adapter,
    lora_linears,
    lora_parameters,
    save_adapter,
)
from tiny_models import ARCHITECTURES, adapt, load_tiny

Loader = Callable[..., tuple[Any, Any]]
TARGETS = {a: ["c_attn"] if a == "gpt2" else ["q_proj", "v_proj"] for a in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_default_targets(tiny: Loader, architecture: str) -> None:
    model, _ = tiny(architecture)
    assert default_targets(model) == TARGETS[architecture]
    linears = lora_linears(add_adapter(model, LoraSettings(rank=2), seed=0))
    assert len(linears) == 2 * len(TARGETS[architecture])  # two layers
    assert all(linear.down.out_features == linear.up.in_features == 2 for linear in linears)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_output_layer_is_no_candidate(tiny: Loader, architecture: str) -> None:
    names = linear_names(tiny(architecture)[0])
    assert "lm_head" not in names
    assert set(TARGETS[architecture]) < set(names)


def test_targets_that_match_nothing_list_the_candidates(tiny: Loader) -> None:
    model, _ = tiny("gpt2")
    settings = LoraSettings(targets=("q_proj", "c_attn", "nonsense"))
    with pytest.raises(
        ModelError,
        match=r"LoRA targets q_proj, nonsense match nothing .*; expected some of c_attn, c_fc",
    ):
        add_adapter(model, settings, seed=0)


def test_no_default_targets() -> None:
    class Unheard(nn.Module):
        config = type("Config", (), {"model_type": "unheard-of"})()

        def __init__(self) -> None:
            super().__init__()
            self.mix, self.mash = nn.Linear(2, 2), nn.Linear(2, 2)

    with pytest.raises(
        ModelError, match=r"no default LoRA targets for a unheard-of .* among mash, mix; name them"
    ):
        default_targets(Unheard())


def test_a_fresh_adapter_changes_nothing_and_follows_its_seed(tiny: Loader) -> None:
    ids = torch.tensor([[0, 5, 6, 7]])
    base, _ = tiny("llama")
    expected = base(ids).logits.detach()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = [add_adapter(tiny("llama")[0], LoraSettings(rank=3), seed=seed) for seed in (4, 4, 5)]
    assert torch.equal(torch.get_rng_state(), state), "the global random state has moved"
    assert torch.equal(found[0].eval()(ids).logits, expected)
    down = [dict(lora_parameters(m)) for m in found]
    name = next(n for n in down[0] if "lora_A" in n)
    assert torch.equal(down[0][name], down[1][name])
    assert not torch.equal(down[0][name], down[2][name])
    assert all((p == 0).all() for n, p in down[0].items() if "lora_B" in n)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_come_back(tiny: Loader, tmp_path: Path, architecture: str) -> None:
    model = adapt(tiny(architecture)[0])
    save_adapter(model, tmp_path / "deep" / "adapter")
    restored = load_adapter(tiny(architecture)[0], tmp_path / "deep" / "adapter")
    ids = torch.tensor([[0, 5, 6, 7]])
    assert torch.equal(model(ids).logits, restored(ids).logits)
    assert not list(tmp_path.rglob("*.bin")), "safetensors only"


def test_names_are_those_of_the_saved_keys(tiny: Loader, tmp_path: Path) -> None:
    model = adapt(tiny("llama")[0])
    save_adapter(model, tmp_path)
    named = dict(lora_parameters(model))
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == set(named)
    trained = [canonical_name(n) for n, p in model.named_parameters() if p.requires_grad]
    assert trained == list(named), "the optimizer's order is the order of the names"


def test_a_folder_without_adapter(tiny: Loader, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no adapter_config\.json; expected a folder written"):
        load_adapter(tiny("llama")[0], tmp_path)


@pytest.mark.parametrize("change", ["wider", "shallower", "deeper", "another architecture"])
def test_an_adapter_of_another_model(
    tiny: Loader, tiny_folder: Callable[..., Path], tmp_path: Path, change: str
) -> None:
    save_adapter(adapt(tiny("llama")[0]), tmp_path)
    config = LlamaConfig.from_pretrained(tiny_folder("llama"))
    if change == "wider":
        config.hidden_size = 64
    else:
        config.num_hidden_layers = {"shallower": 1, "deeper": 3}.get(change, 2)
    other = tiny("gpt2")[0] if change == "another architecture" else LlamaForCausalLM(config)
    with pytest.raises(ModelError, match=r"the adapter in .* does not fit the model .*name the"):
        load_adapter(other, tmp_path)


def test_a_model_without_adapter(tiny: Loader) -> None:
    with pytest.raises(ModelError, match="the model has no LoRA adapter; expected a PEFT model"):
        lora_linears(tiny("llama")[0])


@pytest.mark.parametrize("kind", ["dora", "embedding"])
def test_other_kinds_of_lora_are_refused(tiny_folder: Callable[..., Path], kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = load_tiny(tiny_folder("llama"))
    targets = ["q_proj"] if kind == "dora" else ["embed_tokens"]
    config = LoraConfig(r=2, target_modules=targets, use_dora=kind == "dora")
    with pytest.raises(ModelError, match="is not a plain LoRA linear map; expected LoRA on"):
        lora_linears(get_peft_model(model, config))


def test_an_adapter_is_saved_with_its_targets_in_order(
    tiny: Callable[..., tuple[Any, Any]], tmp_path: Path
) -> None:
    base, _ = tiny("llama")
    settings = LoraSettings(targets=("v_proj", "up_proj", "q_proj", "down_proj"))
    save_adapter(add_adapter(base, settings, seed=0), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "q_proj", "up_proj", "v_proj"]
    assert load_adapter(tiny("llama")[0], tmp_path) is not None
