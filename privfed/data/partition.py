"""How examples are spread over clients, vectorised: a million clients cost no object each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from privfed.data.dataset import Dataset
from privfed.data.holdout import Rows, draw_clients, rows_of_clients, take_rows
from privfed.data.population import Labels, Offsets, Population, require_examples
from privfed.errors import SettingError

_ELEMENTS_AT_ONCE = 1 << 22
_SMALLEST_CONCENTRATION = 1e-100
"""Below it log(U)/a overflows; at it a client has one class for certain already."""


class Assignment(NamedTuple):
    """Who holds what: client ``c`` holds the examples ``order[offsets[c]:offsets[c + 1]]``."""

    order: NDArray[np.int64]
    offsets: Offsets


@dataclass(frozen=True)
class PartitionPlan:
    """What a partitioner goes by.

    Attributes:
        clients: Number of clients.
        seed: The same seed gives the same partition.
        alpha: Of ``dirichlet``: concentration; small is more skewed.
        shards_per_client: Of ``shards``.
        examples_per_client: What a client holds beyond this many is left out; ``None`` leaves nothing out.

    Raises:
        SettingError: A value out of range.
    """

    clients: int
    seed: int = 0
    alpha: float = 0.5
    shards_per_client: int = 2
    examples_per_client: int | None = None

    def __post_init__(self) -> None:
        for key in ("clients", "shards_per_client", "examples_per_client"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise SettingError("must be at least 1", where=f"data.{key}", value=value)
        if self.seed < 0:
            raise SettingError("must not be negative", where="data.seed", value=self.seed)
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise SettingError("must be a number above 0", where="data.alpha", value=self.alpha)

    def generator(self) -> np.random.Generator:
        """The partition's own stream: the same seed elsewhere does not repeat it."""
        return np.random.default_rng([self.seed, *b"partition"])


Partitioner = Callable[[Labels, PartitionPlan], Assignment]


def sequential(labels: Labels, plan: PartitionPlan) -> Assignment:
    """Consecutive ranges in file order, of sizes that differ by one at most."""
    return Assignment(np.arange(len(labels), dtype=np.int64), _equal_offsets(len(labels), plan.clients))


def iid(labels: Labels, plan: PartitionPlan) -> Assignment:
    """A uniform permutation cut into ranges of sizes that differ by one at most."""
    order = plan.generator().permutation(len(labels)).astype(np.int64, copy=False)
    return Assignment(order, _equal_offsets(len(labels), plan.clients))


def dirichlet(labels: Labels, plan: PartitionPlan) -> Assignment:
    """Label skew of concentration ``alpha``: client ``c`` draws its labels from ``q_c ~ Dir(alpha * prior)``.

    Sizes differ by one at most and no example is used twice, as in Hsu, Qi & Brown (2019,
    https://arxiv.org/abs/1909.06335, section 3). Where a class runs out, theirs serves clients in their order;
    here all clients draw at once, those that get the last examples are chosen uniformly, and the others draw
    again among the classes that are left: no client is favoured, and there is at most one pass for each class.
    When every example must go to somebody, that makes clients less skewed than ``q_c``; under a cap well below the
    equal share no class runs out.
    """
    rng = plan.generator()
    examples = len(labels)
    sizes = np.diff(_equal_offsets(examples, plan.clients))
    if plan.examples_per_client is not None:
        sizes = np.minimum(sizes, plan.examples_per_client)
    owner = np.repeat(np.arange(plan.clients), sizes)
    _, codes, pool = np.unique(labels, return_inverse=True, return_counts=True)
    left = pool.copy()
    mixture = _log_dirichlet(rng, plan.alpha * pool / examples, plan.clients)
    drawn = np.full(len(owner), -1, dtype=np.int64)
    waiting = np.arange(len(owner))
    while waiting.size:
        wish = _draw_classes(rng, mixture, owner[waiting], left > 0)
        for label in np.flatnonzero(left):
            served = waiting[wish == label]
            if served.size > left[label]:
                served = rng.permutation(served)[: left[label]]
            drawn[served] = label
            left[label] -= served.size
        waiting = waiting[drawn[waiting] < 0]
    shuffled = rng.permutation(examples)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    rank = np.arange(examples) - np.repeat(np.cumsum(pool) - pool, pool)
    order = np.empty(len(owner), dtype=np.int64)
    order[np.argsort(drawn, kind="stable")] = by_class[rank < np.repeat(pool - left, pool)]
    return Assignment(order, _offsets_of(sizes))


def shards(labels: Labels, plan: PartitionPlan) -> Assignment:
    """Sort by label, cut into equal shards, give each client ``shards_per_client`` at random.

    McMahan et al. (2017, https://arxiv.org/abs/1602.05629, section 3), where 200 shards of 300 MNIST examples make
    100 clients of mostly two digits each.
    """
    rng = plan.generator()
    count = plan.clients * plan.shards_per_client
    if count > len(labels):
        raise SettingError(
            f"{plan.clients} clients need {count:,} examples for that, and the dataset has {len(labels):,}",
            where="data.shards_per_client",
            value=plan.shards_per_client,
            remedy="Lower it, or data.clients",
        )
    bounds = _equal_offsets(len(labels), count)
    dealt = rng.permutation(count)
    sizes = np.diff(bounds)[dealt]
    ends = np.cumsum(sizes)
    position = np.arange(len(labels)) - np.repeat(ends - sizes, sizes) + np.repeat(bounds[:-1][dealt], sizes)
    order = np.argsort(labels, kind="stable")[position]
    offsets = _offsets_of(sizes.reshape(plan.clients, plan.shards_per_client).sum(axis=1))
    # Shuffled within each client: a batch, or the examples left under a cap, are not of one shard only.
    owner = np.repeat(np.arange(plan.clients), np.diff(offsets))
    return Assignment(order[np.lexsort((rng.random(len(labels)), owner))], offsets)


PARTITIONERS: dict[str, Partitioner] = {
    "sequential": sequential,
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
}


NATURAL = "natural"
"""The partition of data that came by client; it goes by their offsets, not by labels."""


def assign(labels: Labels, partition: str, plan: PartitionPlan) -> Assignment:
    """Run the partitioner of that name, and leave out what is beyond ``plan.examples_per_client``.

    Raises:
        SettingError: An unknown name; more clients than examples; fewer examples than shards.
    """
    if partition not in PARTITIONERS:
        raise SettingError(
            "unknown partition",
            where="data.partition",
            value=partition,
            remedy=f"Known: {', '.join(PARTITIONERS)}, {NATURAL}",
        )
    if plan.clients > len(labels):
        raise SettingError(
            f"there are more clients than the {len(labels):,} examples",
            where="data.clients",
            value=plan.clients,
            remedy="Make it smaller",
        )
    order, offsets = PARTITIONERS[partition](labels, plan)
    if plan.examples_per_client is None:
        return Assignment(order, offsets)
    sizes = np.diff(offsets)
    rank = np.arange(len(order)) - np.repeat(offsets[:-1], sizes)
    kept = np.minimum(sizes, plan.examples_per_client)
    return Assignment(order[rank < plan.examples_per_client], _offsets_of(kept))


def natural(offsets: Offsets, plan: PartitionPlan) -> tuple[Rows, Offsets]:
    """The clients that the data came with: all of them, or ``plan.clients`` drawn uniformly, in their order."""
    available = len(offsets) - 1
    if plan.clients > available:
        raise SettingError(
            f"there are more clients than the {available:,} of the data",
            where="data.clients",
            value=plan.clients,
            remedy="Make it smaller, or remove it to take all",
        )
    return rows_of_clients(offsets, draw_clients(available, plan.clients, plan.seed), plan.examples_per_client)


def build_population(
    dataset: Dataset,
    partition: str,
    clients: int | None = None,
    seed: int = 0,
    *,
    alpha: float = 0.5,
    shards_per_client: int = 2,
    examples_per_client: int | None = None,
) -> Population:
    """Spread a dataset over clients: one permutation into packed arrays.

    Args:
        dataset: What a source gave.
        partition: A name in ``PARTITIONERS``, or ``natural`` for data that came by client.
        clients: Number of clients; of ``natural``, how many to draw, and all when not given.
        seed: Of the partition.
        alpha: Of ``dirichlet``.
        shards_per_client: Of ``shards``.
        examples_per_client: Cap on what a client holds.

    Raises:
        DataError: The dataset is empty or holds values that cannot be trained on; see ``Population``.
        SettingError: A setting is out of range or does not fit the dataset.
    """
    require_examples(dataset.name, "training", dataset.train_features, dataset.train_labels)
    rows: Rows
    if partition == NATURAL:
        owned = _require_natural(dataset)
        plan = PartitionPlan(
            len(owned) - 1 if clients is None else clients, seed, alpha, shards_per_client, examples_per_client
        )
        rows, offsets = natural(owned, plan)
    else:
        if clients is None:
            raise SettingError(f"is missing: the partition {partition} needs it", where="data.clients")
        plan = PartitionPlan(clients, seed, alpha, shards_per_client, examples_per_client)
        rows, offsets = assign(dataset.train_labels, partition, plan)
    return Population(
        features=take_rows(dataset.train_features, rows),
        labels=take_rows(dataset.train_labels, rows),
        offsets=offsets,
        test_features=dataset.test_features,
        test_labels=dataset.test_labels,
        name=dataset.name,
        classes=dataset.classes,
        tokens=dataset.tokens,
    )


def _require_natural(dataset: Dataset) -> Offsets:
    if dataset.train_offsets is None:
        raise SettingError(
            f"the dataset {dataset.name} does not come by client",
            where="data.partition",
            value=NATURAL,
            remedy=f"Use a source that does (tff, npz, parquet, npy), or one of {', '.join(PARTITIONERS)}",
        )
    return dataset.train_offsets


def _equal_offsets(examples: int, parts: int) -> Offsets:
    return np.arange(parts + 1, dtype=np.int64) * examples // parts


def _offsets_of(sizes: NDArray[Any]) -> Offsets:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def _log_dirichlet(rng: np.random.Generator, concentration: NDArray[Any], draws: int) -> NDArray[np.float64]:
    """Logarithms, up to a constant for each row, of Dirichlet draws ``[draws, classes]``.

    In logarithms because gamma variates of small shape underflow to 0: G(a) = G(a + 1) * U**(1/a) (Marsaglia &
    Tsang 2000, section 6).
    """
    shape = np.maximum(concentration, _SMALLEST_CONCENTRATION)
    size = (draws, len(shape))
    logs: NDArray[np.float64] = np.log(rng.standard_gamma(shape + 1, size)) + np.log1p(-rng.random(size)) / shape
    return logs


def _draw_classes(
    rng: np.random.Generator, mixture: NDArray[np.float64], owner: NDArray[Any], allowed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """One class for each ``owner``, from its row of ``mixture`` renormalised over ``allowed`` (Gumbel-max)."""
    classes = np.flatnonzero(allowed)
    mixture = mixture[:, classes]
    wish = np.empty(len(owner), dtype=np.int64)
    step = max(1, _ELEMENTS_AT_ONCE // len(classes))
    for start in range(0, len(owner), step):
        rows = mixture[owner[start : start + step]]
        rows += rng.gumbel(size=rows.shape)
        wish[start : start + step] = classes[np.argmax(rows, axis=1)]
    return wish
