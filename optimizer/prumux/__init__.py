"""A compiler for transformer encoders: prune, slice and export within a loss budget.

    result = prumux.optimize("model", budget=0.02)
    prumux.load("model-prumux").predict(["a fine film"])

After `import prumux`, Hugging Face's Auto classes and pipelines load optimised models, too.
The import is quick: each name below is imported on first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prumux.optimizer.model.autoclass import install as _install

if TYPE_CHECKING:
    from prumux.export.runtime.predictor import Predictor, load
    from prumux.optimizer.base.errors import PrumuxError
    from prumux.optimizer.pipeline.pipeline import Pipeline
    from prumux.optimizer.run.hub import push_to_hub
    from prumux.optimizer.run.run import Result, optimize
    from prumux.optimizer.tasks.prediction import Prediction, TextSpan

    __version__: str

__all__ = [
    "Pipeline",
    "Prediction",
    "Predictor",
    "PrumuxError",
    "Result",
    "TextSpan",
    "__version__",
    "load",
    "optimize",
    "push_to_hub",
]

_HOMES = {
    "Pipeline": "prumux.optimizer.pipeline.pipeline",
    "Prediction": "prumux.optimizer.tasks.prediction",
    "Predictor": "prumux.export.runtime.predictor",
    "PrumuxError": "prumux.optimizer.base.errors",
    "Result": "prumux.optimizer.run.run",
    "TextSpan": "prumux.optimizer.tasks.prediction",
    "load": "prumux.export.runtime.predictor",
    "optimize": "prumux.optimizer.run.run",
    "push_to_hub": "prumux.optimizer.run.hub",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name == "__version__":
        from importlib.metadata import version

        found: object = version("prumux")
    elif name in _HOMES:
        from importlib import import_module

        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'prumux' has no attribute '{name}'")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names."""
    return __all__


# ONNX Runtime reads this variable on import. Without it, ONNX Runtime writes a device id under
# HOME and sends reports. A user can allow the reports with `ORT_DISABLE_TELEMETRY=0`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_install()
