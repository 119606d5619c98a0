"""GPU kernels of tomfisher (installed as `tomfisher.kernels`): device code and launchers, nothing else."""

__version__ = "0.1.0"
