"""What judges a run: the evidence model, membership inference, the figures that no mechanism protects."""
