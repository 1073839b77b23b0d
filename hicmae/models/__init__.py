"""The networks: layers -> modality encoders and fusion -> pre-training model and classifier.

Importing this folder registers every model size with timm; where nothing has imported timm yet, as
soon as something does, since its seconds are more than a short prediction takes.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from hicmae.models import finetune, pretrain
from hicmae.models.encoder import BUILDERS

__all__ = ["finetune", "pretrain"]


def _register(timm: ModuleType) -> None:
    for builder in BUILDERS.values():
        timm.models.register_model(builder)


class _OnceImported(MetaPathFinder):
    """Registers the sizes when timm is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the spec of timm with one step more, None of everything else."""
        if name != "timm":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (other.find_spec(name, path, target) for other in others)), None)
        loader: Any = spec and spec.loader
        if loader is None:
            return None
        load = loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            sys.meta_path.remove(self)
            _register(module)

        loader.exec_module = load_and_register
        return spec


if "timm" in sys.modules:
    _register(sys.modules["timm"])
else:
    sys.meta_path.insert(0, _OnceImported())
