"""The federated algorithm: who takes part, what clients do, and what the server makes of it."""
