"""Differential privacy of whole clients: clipping, noise, mechanisms, sampling, accounting, and the ledger."""
