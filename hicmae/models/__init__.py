"""The networks: layers -> modality encoders and fusion -> pre-training model and classifier.

Importing this folder registers every model size with timm.
"""

from hicmae.models import finetune, pretrain

__all__ = ["finetune", "pretrain"]
