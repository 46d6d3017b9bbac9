"""Attacks crossed with defences: ``privfed attack EXPERIMENT --grid defences``."""
