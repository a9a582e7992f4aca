"""``biasdiff run``: all stages in order, going on where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biasdiff.config import SHIPPED, Config
from biasdiff.errors import ArtifactError, BiasdiffError, ConfigError, nearest
from biasdiff.pipeline.artifacts import STAGE_FILE, Artifact, State, folder_size, read_json
from biasdiff.pipeline.attribute import plan_attribute
from biasdiff.pipeline.base_model import find_adapter
from biasdiff.pipeline.estimators import chosen_estimators
from biasdiff.pipeline.evaluate import plan_evaluate
from biasdiff.pipeline.layout import RunLayout, layout_of, open_run, save_config
from biasdiff.pipeline.mitigate import check_method, plan_mitigate
from biasdiff.pipeline.mixture import FILES, plan_data
from biasdiff.pipeline.report import load_results, plan_report
from biasdiff.pipeline.scores import SCORES_FILE
from biasdiff.pipeline.select import SELECTION_FILE, plan_select
from biasdiff.pipeline.warmup import plan_warmup
from biasdiff.progress import say

Planner = Callable[[RunLayout], Artifact]


@dataclass(frozen=True)
class StageStatus:
    """One line of ``biasdiff status``.

    Attributes:
        stage: Its name.
        state: On disk, judged by the run's config.
        seconds: It took, None while unfinished.
        size: Bytes on disk.
    """

    stage: str
    state: State
    seconds: float | None
    size: int


def run(config: Config, *, force: bool = False) -> dict[str, Any]:
    """Run BIAS DIFF from data to report in ``<runs>/<name>`` and return the results.

    Finished stages are kept, an unfinished one goes on where it stopped.

    Args:
        config: Settings.
        force: Make stages anew whose settings or inputs have changed, instead of refusing.

    Raises:
        ArtifactError: If a stage on disk was made from other settings or inputs.
    """
    chosen_estimators(config)
    for method in config.mitigation.methods:
        check_method(method)
    layout = layout_of(config)
    save_config(layout)
    planners = stage_planners(layout)
    for number, (name, plan) in enumerate(planners.items(), 1):
        say(f"[{number}/{len(planners)}] {name}")
        plan(layout).make(force=force)
    return load_results(layout)


def run_stages(folder: str | Path, stage: str, *, force: bool = False) -> list[Path]:
    """Run one stage of a run directory with the run's own config, for all models it stands for.

    Args:
        folder: Run directory.
        stage: A stage, or ``evaluate`` for all models.
        force: Make it anew if settings or inputs have changed.

    Raises:
        ConfigError: If the run has no such stage.
        ArtifactError: If an earlier stage is missing.
    """
    layout = open_run(folder)
    planners = stage_planners(layout)
    chosen = [name for name in planners if name == stage or name.startswith(f"{stage}-")]
    if not chosen:
        raise ConfigError(
            f"the run has no stage {stage!r}{nearest(stage, planners)}",
            expected=f"one of {', '.join(planners)}",
            remedy="choose one of these",
        )
    for name in chosen:
        for earlier in planners:
            if earlier == name:
                break
            if _needs(name, earlier) and not layout.stage(earlier).exists():
                raise ArtifactError(
                    f"{layout.folder} has no finished stage {earlier!r}",
                    expected=f"it before {name!r}",
                    remedy="run it first, or 'biasdiff run' for all",
                )
    return [planners[name](layout).make(force=force) for name in chosen]


def status(folder: str | Path) -> list[StageStatus]:
    """Return the state of every stage of a run directory."""
    layout = open_run(folder)
    lines = []
    for name, plan in stage_planners(layout).items():
        path = layout.stage(name)
        part = path.with_name(path.name + ".part")
        state: State = "missing"
        if path.exists() or part.exists():
            try:
                state = plan(layout).state()
            except BiasdiffError:  # what it was made from is gone
                state = "stale"
        where = path if path.exists() else part
        finished = (path / STAGE_FILE).is_file()
        seconds = read_json(path / STAGE_FILE)["seconds"] if finished else None
        lines.append(StageStatus(name, state, seconds, folder_size(where) if where.exists() else 0))
    return lines


def stage_planners(layout: RunLayout) -> dict[str, Planner]:
    """Return the stages of a run in order, each with the function that plans it."""
    planners: dict[str, Planner] = {}
    if any(getattr(layout.config.data, role) == SHIPPED for role in FILES):
        planners["data"] = lambda run: plan_data(run.stage("data"), config=run.config)
    planners |= {"warmup": _warmup, "attribute": _attribute, "select": _select}
    for method in layout.config.mitigation.methods:
        planners[f"mitigate-{method}"] = _mitigation(method)
    for model in layout.models:
        planners[f"evaluate-{model}"] = _evaluation(model)
    planners["report"] = plan_report
    return planners


def _warmup(run: RunLayout) -> Artifact:
    config = run.config
    return plan_warmup(config.model.name, run.data("train"), run.stage("warmup"), config=config)


def _attribute(run: RunLayout) -> Artifact:
    return plan_attribute(
        run.config.model.name,
        run.data("train"),
        run.data("probe"),
        run.stage("attribute"),
        adapter=run.stage("warmup"),
        config=run.config,
    )


def _select(run: RunLayout) -> Artifact:
    return plan_select(
        run.stage("attribute") / SCORES_FILE,
        run.stage("select"),
        selection=run.config.selection,
        seed=run.config.seed,
    )


def _mitigation(method: str) -> Planner:
    def plan(run: RunLayout) -> Artifact:
        return plan_mitigate(
            run.config.model.name,
            run.stage("warmup"),
            run.data("train"),
            run.stage("select") / SELECTION_FILE,
            run.stage(f"mitigate-{method}"),
            method=method,
            config=run.config,
        )

    return plan


def _evaluation(model: str) -> Planner:
    def plan(run: RunLayout) -> Artifact:
        adapter = run.adapter(model)
        return plan_evaluate(
            run.config.model.name,
            None if adapter is None else find_adapter(adapter),
            run.data("pairs"),
            run.data("texts"),
            run.stage(f"evaluate-{model}"),
            name=model,
            config=run.config,
        )

    return plan


def _needs(stage: str, earlier: str) -> bool:
    """Return whether a stage reads what an earlier one wrote."""
    if stage.startswith("evaluate-"):
        model = stage.removeprefix("evaluate-")
        return earlier in ("data", f"mitigate-{model}") or (
            model == "biased" and earlier == "warmup"
        )
    if stage.startswith("mitigate-"):
        return not earlier.startswith("mitigate-")
    return True
