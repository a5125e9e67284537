"""scikit-learn estimators that train on compiled steps.

    MLPClassifier, MLPRegressor   scikit-learn's own, parameter for parameter, and what its users are refused: other
                                  losses, any activation, dropout, class and sample weights, AdamW
    NetClassifier, NetRegressor   any torch module as an estimator

``losses``, ``network`` and ``compiled`` make and keep the compiled steps; ``mlp`` and ``net`` are the estimators.
"""

import importlib.util

from chainrule.errors import MissingExtraError

for _package, _extra in (("sklearn", "sklearn"), ("torch", "torch")):
    if importlib.util.find_spec(_package) is None:
        raise MissingExtraError("chainrule.sklearn", _package, _extra)

from chainrule.sklearn.mlp import MLPClassifier, MLPRegressor  # noqa: E402
from chainrule.sklearn.net import NetClassifier, NetRegressor  # noqa: E402

__all__ = ["MLPClassifier", "MLPRegressor", "NetClassifier", "NetRegressor"]
