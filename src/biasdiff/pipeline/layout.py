"""Where the stages of a run lie, and which model is which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from biasdiff.config import Config, load_config
from biasdiff.errors import ArtifactError
from biasdiff.pipeline.evaluate import EVALUATION_FILE
from biasdiff.pipeline.mixture import data_file

CONFIG_FILE = "config.yaml"
BASE, BIASED = "base", "biased"


@dataclass(frozen=True)
class RunLayout:
    """A run directory: one folder per stage, and the resolved config.

    Attributes:
        folder: ``<runs>/<name>``.
        config: Resolved settings.
    """

    folder: Path
    config: Config

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.folder / name

    def data(self, role: str) -> str:
        """Return the file of ``train``, ``probe``, ``pairs`` or ``texts``."""
        return data_file(role, self.stage("data"), self.config)

    @property
    def models(self) -> list[str]:
        """Base, biased, and one debiased model per method."""
        return [BASE, BIASED, *self.config.mitigation.methods]

    def adapter(self, model: str) -> Path | None:
        """Return where a model's adapter lies; None for the base."""
        if model == BASE:
            return None
        return self.stage("warmup" if model == BIASED else f"mitigate-{model}")

    def evaluation(self, model: str) -> Path:
        """Return the evaluation record of a model."""
        return self.stage(f"evaluate-{model}") / EVALUATION_FILE


def layout_of(config: Config) -> RunLayout:
    """Return the layout that a config names."""
    return RunLayout(Path(config.runs) / config.name, config)


def open_run(folder: str | Path) -> RunLayout:
    """Return the layout of a run directory on disk.

    Raises:
        ArtifactError: If the folder is no run directory.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise ArtifactError(
            f"{folder} has no {CONFIG_FILE}",
            expected="a run directory made by 'biasdiff run'",
            remedy="check the path",
        )
    return RunLayout(folder, load_config(folder / CONFIG_FILE))


def save_config(layout: RunLayout) -> None:
    """Write the resolved config into the run directory."""
    layout.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(layout.config.model_dump(mode="json"), sort_keys=False)
    work = layout.folder / f"{CONFIG_FILE}.tmp"
    work.write_text(text, encoding="utf-8")
    work.rename(layout.folder / CONFIG_FILE)
