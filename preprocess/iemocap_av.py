from data_sets import iemocap

raise SystemExit(iemocap())
