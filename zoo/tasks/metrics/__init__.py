"""The metrics of the benchmarks that the tasks belong to."""
