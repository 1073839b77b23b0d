"""Training: losses, optimiser, the loop, metrics, checkpoints, logs and processes."""
