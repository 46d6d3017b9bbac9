"""Many trainings of one experiment: sweeps over a grid, searches for good settings, and what they cost together.

Each trial is a run folder like any other, made in a worker process; this process never imports TensorFlow.
"""
