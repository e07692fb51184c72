"""Registers prumux with transformers' Auto classes, without importing transformers.

This module registers only the config class. The first `PrumuxConfig` that is made registers
the model classes (see `PrumuxConfig.register_models`). They cannot be imported earlier:
transformers imports its auto modules while it is importing modules that these classes need.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Register now if transformers' Auto classes are imported, else when they are imported.

    Further calls have no effect. The function imports no heavy module itself.
    """
    if AUTO_CONFIG not in sys.modules:
        if any(isinstance(finder, _Finder) for finder in sys.meta_path):
            return
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        # Another thread may have begun the import before the finder was inserted. Never wait
        # for an import that the finder has seen: that import waits for the import of `prumux`.
        if AUTO_CONFIG not in sys.modules or finder.seen:
            return
        finder.remove()
    _register(importlib.import_module(AUTO_CONFIG))


def _register(auto: ModuleType) -> None:
    from .prumux_config import PrumuxConfig

    PrumuxConfig.register_models = _register_models
    auto.AutoConfig.register(PrumuxConfig.model_type, PrumuxConfig, exist_ok=True)


def _register_models() -> None:
    from . import prumux_model  # noqa: F401 - the import registers the classes


class _Finder(MetaPathFinder):
    """Finds one module with the other finders, and registers prumux after it is loaded."""

    def __init__(self) -> None:
        self.seen = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of transformers' auto module; None for all other modules."""
        if fullname != AUTO_CONFIG:
            return None
        self.seen = True
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def remove(self) -> None:
        """Remove this finder from `sys.meta_path`."""
        # A new list: removing an entry from the old list could make a running import of
        # another thread skip a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]


class _Loader(Loader):
    def __init__(self, inner: Loader, finder: _Finder) -> None:
        self._inner = inner
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        _register(module)
        self._finder.remove()
