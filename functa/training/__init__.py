"""The training step, the training loop with its checkpoints and logs, and the tasks it trains."""
