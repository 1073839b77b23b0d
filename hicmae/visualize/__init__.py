"""Pictures of results: ``python -m hicmae.visualize PICTURE --help``.

curves, confusion, reliability, radar, reconstruction, tsne, attention, retrieval, layer_weights.
Bitmaps have 200 dpi; `--output` may also end in .pdf or .svg. See `hicmae.inference.style` for
their look.
"""
