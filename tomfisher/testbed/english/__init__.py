"""Training stories about beliefs in English: a grammar that tells them in many ways, and what is asked about them."""
