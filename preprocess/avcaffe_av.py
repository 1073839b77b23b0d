from data_sets import avcaffe

raise SystemExit(avcaffe())
