# Makes the lists of MAFW; --help tells what it needs.
from data_sets import mafw

raise SystemExit(mafw())
