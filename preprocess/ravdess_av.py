# Makes the lists of RAVDESS; --help tells what it needs.
from data_sets import ravdess

raise SystemExit(ravdess())
