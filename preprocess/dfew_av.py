from data_sets import dfew

raise SystemExit(dfew())
