from data_sets import mafw

raise SystemExit(mafw())
