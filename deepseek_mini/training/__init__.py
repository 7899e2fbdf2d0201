"""The trainer: the loop, the step, checkpoints, evaluation and the guards around them."""
