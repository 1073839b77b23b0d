"""HiCMAE: hierarchical contrastive masked autoencoder for audio-visual emotion recognition.

The folders are the data flow:

- ``hicmae.data``: clip lists, decoding, masks, augmentation -> batches of tensors.
- ``hicmae.models``: encoders, fusion, skip decoders -> pre-training model, classifier, losses.
- ``hicmae.training``: optimiser, the training loop, metrics, checkpoints, logs.
- ``hicmae.inference``: a trained model answers: ``from hicmae import EmotionRecognizer``.
- ``hicmae.faces``: faces found, followed and cut out.

Beside them are ``hicmae.config``, settings, ``hicmae.report``, tables, ``hicmae.visualize``,
pictures. Importing ``hicmae`` registers the model sizes with timm, so that
``timm.create_model("pretrain_hicmae_dim512_patch16_160_a256")`` works. It imports nothing itself,
as torch and timm take seconds: the models are registered once timm is imported.

Shape letters used in every docstring:

====  ==========================================  ====  ================================
B     batch                                       V     visible tokens
C     channels                                    M     masked tokens
T     video frames or spectrogram steps           D     embedding width
H W   pixels                                      P     values in one patch
F     mel bins                                    K     classes or regression outputs
N     tokens                                      L     encoder blocks
====  ==========================================  ====  ================================
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hicmae.inference.recognizer import EmotionRecognizer

__all__ = ["EmotionRecognizer"]
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Import `EmotionRecognizer` when it is asked for: it brings torch, video decoding and cv2."""
    if name == "EmotionRecognizer":
        from hicmae.inference.recognizer import EmotionRecognizer

        return EmotionRecognizer
    raise AttributeError(f"module 'hicmae' has no attribute {name!r}")


def _register(timm: Any) -> None:
    from hicmae.models.encoder import BUILDERS

    for builder in BUILDERS.values():
        timm.models.register_model(builder)


class _Registers:
    """A finder of modules: whoever imports timm later finds the models registered."""

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
