"""The networks: layers -> modality encoders and fusion -> pre-training model and classifier.

Importing this folder registers every size with timm, or has it registered once timm is imported:
that takes seconds, more than a short prediction.
"""

import sys
from typing import Any

from hicmae.models import finetune, pretrain
from hicmae.models.encoder import BUILDERS

__all__ = ["finetune", "pretrain"]


def _register(timm: Any) -> None:
    for builder in BUILDERS.values():
        timm.models.register_model(builder)


class _Registers:
    """Stands among the finders of modules, for the import of timm."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of timm with one step more, None of everything else."""
        if name != "timm":
            return None
        others: Any = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (other.find_spec(name, path, target) for other in others)), None)
        if spec:
            load = spec.loader.exec_module

            def load_and_register(module: Any) -> None:
                load(module)
                _register(module)

            spec.loader.exec_module = load_and_register
        return spec


if "timm" in sys.modules:
    _register(sys.modules["timm"])
else:
    sys.meta_path.insert(0, _Registers())
