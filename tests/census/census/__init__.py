"""What tomfisher makes of every causal language model of transformers, each built small and random."""
