from data_sets import ravdess

raise SystemExit(ravdess())
