from data_sets import cremad  # the original's name of cremad_av.py

raise SystemExit(cremad())
