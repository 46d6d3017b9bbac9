"""Train federated under differential privacy and secure aggregation; show, observer by observer, what leaks."""

__version__ = "0.1.0"
