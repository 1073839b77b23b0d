from data_sets import cremad

raise SystemExit(cremad())
