"""The networks: layers -> modality encoders and fusion -> pre-training model and classifier."""
