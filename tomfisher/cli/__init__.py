"""The command line: `tomfisher COMMAND`."""
