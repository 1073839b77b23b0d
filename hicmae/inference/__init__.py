"""Using a model: one video in, emotions or features out."""
