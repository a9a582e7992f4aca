"""The estimators, in one plain dict."""

from __future__ import annotations

from biasdiff.attribution.contrast import CONTRAST
from biasdiff.attribution.estimator import Estimator
from biasdiff.attribution.less import LESS

ESTIMATORS: dict[str, Estimator] = {e.name: e for e in (CONTRAST, LESS)}
