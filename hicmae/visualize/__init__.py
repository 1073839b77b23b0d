"""Pictures of results: ``python -m hicmae.visualize PICTURE --help``.

curves, confusion, radar, reconstruction, tsne, retrieval.
Bitmaps have 200 dpi; `--output` may also end in .pdf or .svg. See `hicmae.inference.style` for
their look.
"""
