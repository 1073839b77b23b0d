"""Results of finished folds: scores, how sure they are, and how runs differ."""
