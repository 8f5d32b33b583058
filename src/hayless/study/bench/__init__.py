"""Benchmarks: studies whose contenders include peers. See `spec` for what one is and `runner` for how it is run."""
