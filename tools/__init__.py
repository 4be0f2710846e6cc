"""Development tools: benchmarks and experiments."""
