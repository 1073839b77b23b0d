"""HiCMAE: hierarchical contrastive masked autoencoder for audio-visual emotion recognition.

The folders are the data flow:

- ``hicmae.data``: clip lists, decoding, masks, augmentation -> batches of tensors.
- ``hicmae.models``: encoders, fusion, skip decoders -> pre-training model, classifier, losses.
- ``hicmae.training``: optimiser, the training loop, metrics, checkpoints, logs.
- ``hicmae.inference``: a trained model answers: ``from hicmae import EmotionRecognizer``.
- ``hicmae.faces``: faces found, followed and cut out.

Beside them are ``hicmae.config``, settings, ``hicmae.report``, tables, ``hicmae.visualize``,
pictures. Importing ``hicmae.models`` registers the model sizes with timm, so that
``timm.create_model("pretrain_hicmae_dim512_patch16_160_a256")`` works; ``hicmae`` imports nothing.

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

from typing import TYPE_CHECKING

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
