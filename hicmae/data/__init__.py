"""From a list of clips to batches: what the two training stages and the evaluation read."""
