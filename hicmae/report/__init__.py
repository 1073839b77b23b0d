"""Results of finished folds: scores, how sure they are, and how runs differ.

``python -m hicmae.report FOLDER [FOLDER ...]`` prints the tables and writes them as Markdown,
LaTeX, HTML and JSON. Total is pooled: the predictions of all folds are put together and scored
once, as in the published tables. It is not the mean of the rows.
"""
