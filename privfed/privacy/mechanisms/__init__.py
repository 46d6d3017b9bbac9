"""Mechanisms: each one class with its client half, its server half, and what it releases to whom."""

from privfed.privacy.clipping import Contribution
from privfed.privacy.mechanisms.adaptive import AdaptiveClipping
from privfed.privacy.mechanisms.base import Mechanism, State, Terms
from privfed.privacy.mechanisms.central import CentralGaussian, NoMechanism
from privfed.privacy.mechanisms.correlated import CorrelatedGaussian
from privfed.privacy.mechanisms.distributed import DistributedNoise
from privfed.privacy.mechanisms.example import ExampleGaussian, ExampleNoise
from privfed.privacy.mechanisms.local import LocalGaussian

__all__ = [
    "AdaptiveClipping",
    "CentralGaussian",
    "Contribution",
    "CorrelatedGaussian",
    "DistributedNoise",
    "ExampleGaussian",
    "ExampleNoise",
    "LocalGaussian",
    "Mechanism",
    "NoMechanism",
    "State",
    "Terms",
]
