from data_sets import msp_improv

raise SystemExit(msp_improv())
