"""Pictures of results: ``python -m hicmae.visualize reconstruction|curves|confusion --help``.

Colours are told apart by colour-blind readers (Okabe-Ito for lines, viridis for values), text is
readable at column width, and bitmaps have 200 dpi; `--out` may also end in .pdf or .svg.
"""
