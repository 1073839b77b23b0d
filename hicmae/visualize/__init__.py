"""Pictures of results: ``python -m hicmae.visualize PICTURE --help``.

curves, confusion, reconstruction, tsne, attention, retrieval, radar, layer_weights; ``intervals``
and ``scatter`` are drawn by the HTML page of ``hicmae.report``. Colours are told apart by
colour-blind readers (Okabe-Ito for lines, viridis and inferno for values), text is readable at
column width, and bitmaps have 200 dpi; `--output` may also end in .pdf or .svg.
"""
