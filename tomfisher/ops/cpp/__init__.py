"""Plugs the C++ extension `tomfisher._C` into the operations: one small file per operation."""
