"""The settings of both stages, one frozen dataclass a concern; `flags` turns them into flags.

Names are the original's where they mean the same. A value is checked here only as far as it can be
judged alone; what depends on the data or the model is checked where it is used.
"""
