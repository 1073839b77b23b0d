# The name that the original gives to cremad_av.py.
from data_sets import cremad

raise SystemExit(cremad())
