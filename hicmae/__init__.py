"""HiCMAE: hierarchical contrastive masked autoencoder for audio-visual emotion recognition.

The folders are the data flow:

- ``hicmae.data``: clip lists, decoding, masks, augmentation -> batches of tensors.
- ``hicmae.models``: encoders, cross-modal fusion, skip decoders -> the pre-training model and the classifier.
- ``hicmae.training``: losses, optimiser, the training loop, metrics, checkpoints, logs.

Importing the package registers the model sizes with timm, so
``timm.create_model("pretrain_hicmae_dim512_patch16_160_a256")`` works afterwards.

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

from hicmae.models import finetune, pretrain

__all__ = ["finetune", "pretrain"]
__version__ = "0.1.0"
