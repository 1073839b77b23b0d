"""The networks: layers -> modality encoders and fusion -> pre-training model and classifier."""

from hicmae.models import finetune, pretrain  # they fill encoder.BUILDERS

__all__ = ["finetune", "pretrain"]
