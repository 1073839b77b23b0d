"""Pictures of results: ``python -m hicmae.visualize --help`` lists them.

Bitmaps have 200 dpi; `--output` may also end in .pdf or .svg. For their look see
`hicmae.inference.style`.
"""
