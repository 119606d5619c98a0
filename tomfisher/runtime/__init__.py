"""How any model is run: what is refused before a run, and which rules a model keeps while it runs."""
