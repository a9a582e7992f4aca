from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel, T5Config
from transformers import T5ForConditionalGeneration as T5

from biasdiff.errors import ModelError
from biasdiff.models.loading import (
    UNBOUNDED_CONTEXT,
    ModelSource,
    context_length,
    load_model,
    load_tokenizer,
    parse_dtype,
    resolve_model,
)
from tiny_models import ARCHITECTURES, CONTEXT, load_tiny, save_tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_architecture_loads_in_the_dtype_asked_for(
    tiny_folder: Callable[..., Path], architecture: str, dtype: torch.dtype
) -> None:
    model, tokenizer = load_tiny(tiny_folder(architecture), dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model.training
    assert tokenizer.decode(tokenizer("Rain falls.")["input_ids"]) == "Rain falls."
    assert context_length(model, tokenizer) == CONTEXT


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing does not exist; expected a model folder, a"):
        resolve_model(str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", ["./nothing", "../nothing", "a/b/c"])
def test_names_that_can_only_be_paths(name: str) -> None:
    with pytest.raises(ModelError, match=r"does not exist; .* check the path"):
        resolve_model(name)


def test_a_missing_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.gguf does not exist; expected a GGUF file"):
        resolve_model(str(tmp_path / "m.gguf"))


def test_a_broken_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"m\.gguf cannot be read as GGUF"):
        resolve_model(str(tmp_path / "m.gguf"))
    assert not list((tmp_path / "cache" / "gguf").iterdir()), "a half folder is left"


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json; expected a folder written by save"):
        resolve_model(str(tmp_path))


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="name the base model and pass an adapter folder with"):
        resolve_model(str(tmp_path))


def unreachable(*arguments: Any, **keywords: Any) -> Any:
    raise ConnectionError("Name or service not known")


@pytest.mark.parametrize("name", ["nobody/no-model-of-this-name", "no-model-of-this-name"])
def test_an_unreachable_hub_is_found_out_in_seconds(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    began = time.monotonic()
    with pytest.raises(
        ModelError, match=rf"'{name}' is no local folder and the hub cannot be reached \(Connection"
    ):
        resolve_model(name)
    assert time.monotonic() - began < 5


def test_the_hub_is_asked_with_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(self: Any, name: str, *, timeout: float) -> Any:
        assert timeout <= 10
        return type("Info", (), {"sha": "abc123"})()

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    source = resolve_model("someone/model")
    assert source == ModelSource("someone/model", "someone/model", "someone/model@abc123", False)


def test_a_cached_hub_model_is_used_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshots" / "abc123"
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, local_files_only: str(folder)
    )
    source = resolve_model("someone/model")
    assert source == ModelSource("someone/model", str(folder), "someone/model@abc123", True)


def test_a_model_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def model_info(*arguments: Any, **keywords: Any) -> Any:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(ModelError, match="the hub has no model 'someone/model', or it is private"):
        resolve_model("someone/model")


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "a", "llama", seed=0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, copy = (resolve_model(str(tmp_path / name)) for name in "ab")
    assert first.fingerprint == copy.fingerprint
    save_tiny_model(tmp_path / "b", "llama", seed=1)  # in the same process
    assert resolve_model(str(tmp_path / "b")).fingerprint != first.fingerprint
    (tmp_path / "a" / "README.md").write_text("no part of the model")
    assert resolve_model(str(tmp_path / "a")).fingerprint == first.fingerprint
    config = tmp_path / "a" / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    assert resolve_model(str(tmp_path / "a")).fingerprint != first.fingerprint


BERT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
T5_SIZES = {
    "vocab_size": 320,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
}


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: BertForMaskedLM(BertConfig(**BERT)), "bert .*BertForMaskedLM"),
        (lambda: T5(T5Config(**T5_SIZES)), "t5 .*T5ForConditionalGeneration"),
    ],
    ids=["masked", "encoder-decoder"],
)
def test_other_kinds_of_model_are_refused(
    tmp_path: Path, make: Callable[[], Any], shown: str
) -> None:
    make().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"is a {shown}.*; expected a decoder-only causal langua"):
        load_model(resolve_model(str(tmp_path)))


@pytest.mark.parametrize("kind", ["llama without a head", "bert without a head"])
def test_weights_without_an_output_layer_are_refused(
    tmp_path: Path, tiny_folder: Callable[..., Path], kind: str
) -> None:
    if kind.startswith("llama"):
        AutoModel.from_pretrained(tiny_folder("llama")).save_pretrained(tmp_path)
    else:
        BertModel(BertConfig(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lack \d tensors, for example .*; expected complete"):
        load_model(resolve_model(str(tmp_path)))


@pytest.mark.parametrize("damage", ["truncated", "missing", "pickle only"])
def test_weights_that_cannot_be_loaded(
    tmp_path: Path, tiny_folder: Callable[..., Path], damage: str
) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        weights.unlink()
        if damage == "pickle only":
            torch.save({}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"the weights of .* cannot be loaded .*complete safe"):
        load_model(resolve_model(str(tmp_path / "m")))


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelError, match=r"the config of .* cannot be read"):
        load_model(resolve_model(str(tmp_path)))


def test_a_folder_without_tokenizer(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "m")
    for file in (tmp_path / "m").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded .*beside the"):
        load_tokenizer(resolve_model(str(tmp_path / "m")))


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_of_a_repository_is_executed_only_on_request(
    tmp_path: Path,
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "m")
    marker = tmp_path / "executed"
    (folder / "custom.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "custom-llama",
        "auto_map": {"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "custom.T"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    source = resolve_model(str(folder))
    load = load_model if part == "model" else load_tokenizer
    with pytest.raises(ModelError, match=r"(config|tokenizer) of .* cannot be (read|loaded)") as e:
        load(source)
    assert part == "tokenizer" or "--trust-remote-code" in str(e.value)
    assert not marker.exists()
    with pytest.raises(ModelError, match=r"cannot be (read|loaded)"):  # it lacks the classes
        load(source, trust_remote_code=True)
    assert marker.exists(), "this test would show nothing"


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", CPU, torch.float32),
        ("auto", torch.device("cuda"), torch.bfloat16),
        ("float32", CPU, torch.float32),
        ("bfloat16", CPU, torch.bfloat16),
        ("float16", torch.device("cuda"), torch.float16),
    ],
)
def test_dtypes(name: str, device: torch.device, dtype: torch.dtype) -> None:
    assert parse_dtype(name, device) is dtype


def test_an_unknown_dtype() -> None:
    with pytest.raises(ModelError, match="dtype 'int8'; expected auto, float32, bfloat16, float16"):
        parse_dtype("int8", CPU)


@pytest.mark.parametrize(
    ("positions", "tokenizer_length", "found"),
    [
        (64, 64, 64),
        (64, 32, 32),
        (64, 10**30, 64),
        (None, 48, 48),
        (None, 10**30, UNBOUNDED_CONTEXT),
    ],
)
def test_context_length(positions: int | None, tokenizer_length: int, found: int) -> None:
    class Config:
        max_position_embeddings = positions

        def get_text_config(self) -> Any:
            return self

    class Holder:
        config = Config()
        model_max_length = tokenizer_length

    assert context_length(Holder(), Holder()) == found
