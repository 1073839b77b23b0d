# Makes the lists of CREMA-D; --help tells what it needs.
from data_sets import cremad

raise SystemExit(cremad())
