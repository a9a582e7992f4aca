"""A classifier that the user names, of toxicity for example."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Scores, untyped_scores
from biasdiff.errors import ConfigError
from biasdiff.models.classifiers import load_classifier
from biasdiff.options import ESTIMATORS, Options, checked_options, wrong_option

NAME = "classifier"
SECTION = f"{ESTIMATORS}.{NAME}"


@dataclass(frozen=True)
class Settings:
    """What ``attribution.options.classifier`` may hold.

    Attributes:
        classifier: Folder or hub id of a sequence-classification model; there is no default.
        label: Its class that counts as biased; None for the first of
            `biasdiff.models.classifiers.LABELS` that it has.
        batch: Texts that are classified at once.
    """

    classifier: str
    label: str | None = None
    batch: int = 16


def settings_of(given: Options) -> Settings:
    """Check the options of this baseline.

    Raises:
        ConfigError: If no classifier is named, or an option is unknown or out of range.
    """
    defaults = {f.name: None if f.default is MISSING else f.default for f in fields(Settings)}
    options = checked_options(given, NAME, defaults, section=ESTIMATORS)
    for name in ("classifier", "label"):
        if not isinstance(options[name], str | None):
            raise wrong_option(NAME, name, options[name], "a string", section=ESTIMATORS)
    if not options["classifier"]:
        raise ConfigError(
            f"{NAME}: no classifier is named",
            expected=f"{SECTION}.classifier, a folder or hub id of a sequence-classification model",
            remedy="name one, or leave the baseline out",
        )
    batch = options["batch"]
    if type(batch) is not int or batch < 1:
        expected = "a whole number of 1 or more"
        raise wrong_option(NAME, "batch", batch, expected, section=ESTIMATORS)
    return Settings(**options)


def _score(material: Material) -> Scores:
    settings = settings_of(material.options)
    classify = load_classifier(
        settings.classifier,
        label=settings.label,
        batch=settings.batch,
        device=next(material.model.parameters()).device,
        section=SECTION,
    )
    return untyped_scores(classify(material.texts))


CLASSIFIER = DirectEstimator(
    name=NAME,
    formula="probability of the measured class for i, by the classifier that is named",
    score=_score,
    check=settings_of,
    is_baseline=True,
)
