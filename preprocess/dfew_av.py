# Makes the lists of DFEW; --help tells what it needs.
from data_sets import dfew

raise SystemExit(dfew())
