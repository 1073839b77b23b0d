from data_sets import mer2023

raise SystemExit(mer2023())
