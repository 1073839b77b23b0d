# Makes the lists of AVCAffe; --help tells what it needs.
from data_sets import avcaffe

raise SystemExit(avcaffe())
