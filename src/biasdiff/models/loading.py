"""Loading a causal language model and its tokenizer by folder, hub id, GGUF file or alias."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biasdiff.errors import ModelError
from biasdiff.models.gguf import dequantised_folder, sha256
from biasdiff.models.smollm2 import ALIAS, smollm2_folder

HUB_TIMEOUT_SECONDS = 5.0
MASKED = ("MaskedLM", "Classification", "QuestionAnswering", "PreTraining", "MultipleChoice")
UNBOUNDED_CONTEXT = 1_000_000


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are.

    Attributes:
        name: As the user gave it.
        location: Local folder, or hub id.
        fingerprint: Changes when the weights, config or tokenizer do.
        offline: Whether to read a hub id from the local cache only.
    """

    name: str
    location: str
    fingerprint: str
    offline: bool = True


def resolve_model(name: str) -> ModelSource:
    """Find a model by alias, local folder, ``.gguf`` file or hub id, without loading it.

    Raises:
        ModelError: If it is none of these; an unreachable hub is found out within seconds.
    """
    if name == ALIAS:
        return _local(name, smollm2_folder())
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(
                f"{path} does not exist", expected="a GGUF file", remedy="check the path"
            )
        return _local(name, dequantised_folder(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            remedy = "name the base model and pass an adapter folder with --adapter"
            raise ModelError(
                f"{path} has no config.json",
                expected="a folder written by save_pretrained",
                remedy=remedy if (path / "adapter_config.json").is_file() else "check the path",
            )
        return _local(name, path)
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ModelError(
            f"{name} does not exist",
            expected=f"a model folder, a .gguf file, a hub id or {ALIAS!r}",
            remedy="check the path",
        )
    return _on_hub(name)


def _local(name: str, folder: Path) -> ModelSource:
    return ModelSource(name, str(folder), _folder_fingerprint(folder.resolve()))


def _folder_fingerprint(folder: Path) -> str:
    endings = {".json", ".safetensors", ".bin", ".jinja", ".model", ".txt", ".py"}
    files = sorted(p for p in folder.iterdir() if p.suffix in endings and p.is_file())
    return _fingerprint(tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in files))


@functools.lru_cache(maxsize=8)
def _fingerprint(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:  # size and time of change are there for the cache alone
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def _on_hub(name: str) -> ModelSource:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)
        return ModelSource(name, name, f"{name}@{info.sha}", offline=False)
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {name!r}, or it is private",
            expected="a public model or a logged-in user",
            remedy="check the name or run 'hf auth login'",
        ) from error
    except Exception as error:  # offline, no DNS, proxies: many unrelated types
        try:
            cached = snapshot_download(name, local_files_only=True)
        except (LocalEntryNotFoundError, ValueError):
            raise ModelError(
                f"{name!r} is no local folder and the hub cannot be reached "
                f"({type(error).__name__})",
                expected=f"a model folder, a .gguf file, a cached hub id or {ALIAS!r}",
                remedy="check the path or the connection",
            ) from error
        return ModelSource(name, cached, f"{name}@{Path(cached).name}")


def default_device() -> torch.device:
    """Return the GPU if there is one, this process's of several, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def parse_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of ``name``; ``auto`` is float32 on the CPU and bfloat16 elsewhere.

    Raises:
        ModelError: For another name.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in known:
        raise ModelError(
            f"dtype {name!r}", expected=f"auto, {', '.join(known)}", remedy="choose one of these"
        )
    return known[name]


def load_model(
    source: ModelSource,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal language model in evaluation mode.

    Args:
        source: From `resolve_model`.
        dtype: Of the weights, always explicit (transformers 5 would take the file's).
        device: Where the model goes.
        trust_remote_code: Run code that comes with the model's repository.

    Raises:
        ModelError: If the model is not a causal one or cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    options = {"trust_remote_code": trust_remote_code, "local_files_only": source.offline}
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source.location, **options)
    except Exception as error:  # code of a repository raises anything
        raise ModelError(
            f"the config of {source.name} cannot be read ({(str(error).splitlines() or [''])[0]})",
            expected="a transformers model",
            remedy="check the folder; code of a repository needs --trust-remote-code",
        ) from error
    architectures = config.architectures or []
    masked = any(kind in a for a in architectures for kind in MASKED)
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or trust_remote_code
    if config.is_encoder_decoder or not known or (masked and not getattr(config, "is_decoder", 0)):
        raise ModelError(
            f"{source.name} is a {config.model_type} model "
            f"({', '.join(architectures) or 'no architecture named'})",
            expected="a decoder-only causal language model",
            remedy="choose another model",
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.location, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # loaders raise many unrelated types
        raise ModelError(
            f"the weights of {source.name} cannot be loaded "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]})",
            expected="complete safetensors weights",
            remedy="check the folder or download the model again",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would start them at random
        raise ModelError(
            f"the weights of {source.name} lack {len(missing)} tensors, for example {missing[0]}",
            expected="complete weights of a causal language model, output layer included",
            remedy="choose the model that was saved with its language-model head",
        )
    return model.to(device).eval()


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> Any:
    """Load the model's tokenizer.

    Raises:
        ModelError: If it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.location, trust_remote_code=trust_remote_code, local_files_only=source.offline
        )
    except Exception as error:  # loaders raise many unrelated types
        raise ModelError(
            f"the tokenizer of {source.name} cannot be loaded "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]})",
            expected="tokenizer files beside the weights",
            remedy="save the tokenizer into the model's folder",
        ) from error


def context_length(model: Any, tokenizer: Any) -> int:
    """Return the longest sequence that model and tokenizer both take, in tokens."""
    config = model.config.get_text_config()
    limits = [
        getattr(config, "max_position_embeddings", None),
        getattr(config, "n_positions", None),
        tokenizer.model_max_length,
    ]
    return min([int(x) for x in limits if x and x < UNBOUNDED_CONTEXT] or [UNBOUNDED_CONTEXT])
