"""HiCMAE: hierarchical contrastive masked autoencoder for audio-visual emotion recognition.

The folders are the data flow:

- ``hicmae.data``: clip lists, decoding, masks, augmentation -> batches of tensors.
- ``hicmae.models``: encoders, fusion, skip decoders -> pre-training model and classifier.
- ``hicmae.training``: losses, optimiser, the training loop, metrics, checkpoints, logs.

Beside them ``hicmae.config`` holds the settings, ``hicmae.report`` tables of finished folds and
``hicmae.visualize`` pictures.

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
