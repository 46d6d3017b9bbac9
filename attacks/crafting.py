"""Attacks of a server that crafts the model: what it hands out before the round, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from attacks.base import Attack, Images
from privfed.models.functional import Model, Vector


@dataclass(frozen=True, eq=False)
class Crafted:
    """What the clients of a round are given.

    Attributes:
        model: The round's model; attacks may put layers in front of the agreed one.
        weights: ``[d]`` of ``model``, to all clients, or to the targets alone.
        others: ``[d]``, to everybody else; ``None`` when all get the same. Clients who compare what they were
            given (the commitment of ``privfed.secagg``) find out where it is not ``None``.
    """

    model: Model
    weights: Vector
    others: Vector | None = None


class CraftingAttack(Attack, Protocol):
    """An attack whose ``invert`` works on what became of a model of its own making.

    Its view holds ``Crafted.model``, and the observation's weights are ``Crafted.weights``.
    """

    def craft(self, model: Model, weights: Vector, public: Images) -> Crafted:
        """Make the round's model from the agreed one.

        Args:
            model: What clients expect.
            weights: Where the training stands, ``[d]``.
            public: Examples of the same kind that anybody has, ``[n, *input_shape]`` in [0, 1].

        Raises:
            NotInvertible: Nothing can be made of this model; the message says why.
        """
        ...
