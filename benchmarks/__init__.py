"""Benchmarks of tomfisher against its peers (installed as `tomfisher.benchmarks`)."""
