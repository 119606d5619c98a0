"""Map the top-level folders of the repository into the `tomfisher` namespace.

`kernels/` and `benchmarks/` are installed as `tomfisher.kernels` and `tomfisher.benchmarks`: a top-level
module called `kernels` would shadow the PyPI package of that name, which transformers imports.
"""

from setuptools import find_packages, setup

MAPPED = {"tomfisher.kernels": "kernels", "tomfisher.benchmarks": "benchmarks"}


def packages() -> list[str]:
    """All packages of the distribution; mapped folders have to be listed one by one."""
    found = find_packages(include=["tomfisher", "tomfisher.*"])
    for name, folder in MAPPED.items():
        found += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    return found


setup(packages=packages(), package_dir={"tomfisher": "tomfisher", **MAPPED})
