# Makes the lists of IEMOCAP; --help tells what it needs.
from data_sets import iemocap

raise SystemExit(iemocap())
