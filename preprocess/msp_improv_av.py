# Makes the lists of MSP-IMPROV; --help tells what it needs.
from data_sets import msp_improv

raise SystemExit(msp_improv())
