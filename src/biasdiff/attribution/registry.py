"""The estimators, in one plain dict."""

from __future__ import annotations

from biasdiff.attribution.adapter_contrast import ADAPTER_CONTRAST
from biasdiff.attribution.automatic import AUTO, STACK
from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.contrast import CONTRAST
from biasdiff.attribution.curvature_estimators import DATAINF, EKFAC
from biasdiff.attribution.estimator import Estimator
from biasdiff.attribution.gradient_classifier import CONTRAST_CLASSIFIER
from biasdiff.attribution.less import ADAM, ADAM_V, LESS
from biasdiff.attribution.sgd import SGD_COS, SGD_DOT

_OURS: tuple[Estimator, ...] = (
    CONTRAST,
    LESS,
    ADAM,
    ADAM_V,
    SGD_COS,
    SGD_DOT,
    CONTRAST_CLASSIFIER,
    ADAPTER_CONTRAST,
    DATAINF,
    EKFAC,
    AUTO,
    STACK,
)
ESTIMATORS: dict[str, Estimator] = {e.name: e for e in (*_OURS, *BASELINES.values())}
