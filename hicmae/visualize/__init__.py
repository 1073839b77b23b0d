"""Pictures of results: ``python -m hicmae.visualize PICTURE --help``.

curves, confusion, reconstruction, tsne, attention, retrieval, radar, layer_weights. Bitmaps have
200 dpi; `--output` may also end in .pdf or .svg. How they look stands in `hicmae.inference.style`.
"""
