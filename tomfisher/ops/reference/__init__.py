"""Plain-PyTorch definitions of the operations: readable, exact, on any device."""
