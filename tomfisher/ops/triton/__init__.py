"""Plugs the Triton launchers of `tomfisher.kernels` into the operations: one small file per operation."""
