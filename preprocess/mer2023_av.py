# Makes the lists of MER2023; --help tells what it needs.
from data_sets import mer2023

raise SystemExit(mer2023())
