"""Fast implementations: one module per backend, imported when an operation first asks for it."""
