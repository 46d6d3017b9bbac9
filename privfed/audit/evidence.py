"""The evidence of one run: everything that ``report.json`` holds and the page shows, and nothing else.

Frozen models without behaviour: whoever has the results fills them in, the report renders them. JSON has no
infinity, so it is written as the string ``inf``; NaN is refused, an unknown value is ``None``.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import struct
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

SCHEMA_VERSION: Final = 1
RECOVERY_MARGIN_DB = 1.0
"""A reconstruction counts as more than a guess from this many dB above the best trivial guess."""
RECOVERED_TOKENS = 0.9
"""Text counts as recovered from this F1 of its set of tokens."""
PNG_PREFIX = "data:image/png;base64,"
_PNG_PATTERN = rf"^{PNG_PREFIX}iVBORw0KGgo[A-Za-z0-9+/]+={{0,2}}$"
_COLOURS = {"grey": 0, "RGB": 2}


def _read_infinity(value: Any, info: ValidationInfo) -> Any:
    if info.mode == "json" and value == math.inf:
        raise ValueError('infinity is written as the string "inf"')
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("NaN says nothing: find out where it comes from, or give None for unknown")
    return math.inf if value == "inf" else value


def _finite_json(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("JSON holds finite numbers only")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite_json(item)
    return value


def _checked_png(data: str) -> str:
    try:
        png = base64.b64decode(data.removeprefix(PNG_PREFIX), validate=True)
        depth, colour = struct.unpack(">BB", png[24:26])
    except (binascii.Error, struct.error):
        raise ValueError("is not base64 of a PNG image") from None
    if depth != 8 or colour not in _COLOURS.values():
        raise ValueError(f"a PNG image of 8-bit {' or '.join(_COLOURS)} is needed")
    return data


Number = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Extended = Annotated[
    float,
    BeforeValidator(_read_infinity),
    Field(ge=0),
    PlainSerializer(lambda value: "inf" if value == math.inf else value, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"const": "inf"}]}),
]
"""A number from 0 to infinity."""
Png = Annotated[str, Field(pattern=_PNG_PATTERN), AfterValidator(_checked_png)]
"""A data URI of an 8-bit grey or RGB PNG image; ``png`` makes one."""
Tree = Annotated[dict[str, JsonValue], AfterValidator(_finite_json)]


class Part(BaseModel):
    """A part of the evidence: frozen, and it knows all of its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Part):
    """What was trained on, and what was trained."""

    dataset: str
    fingerprint: str
    clients: Count
    examples: Count
    test_examples: Count
    model: str
    parameters: Count


class Run(Part):
    """Which run this is, and what it takes to repeat it."""

    name: str
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")]
    """UTC, ISO 8601."""
    privfed_version: str
    packages: dict[str, str]
    python: str
    platform: str
    git_commit: str | None
    seed: int | None
    randomness: str
    """In words: seeded for research, or the operating system's CSPRNG."""
    executor: str
    seconds: NonNegative
    status: Literal["complete", "partial"]
    settings: Tree
    settings_fingerprint: str
    data: Data


class Verdict(Part):
    """The answer in one paragraph."""

    level: Literal["protected", "partly", "exposed"]
    text: str


class PrivacyLoss(Part):
    """An ε with all that it depends on but the observer, who is named by its owner."""

    epsilon: Extended
    delta: Share
    unit: str
    neighbouring: str
    sampling: str


class Guarantee(PrivacyLoss):
    """The privacy loss to one observer, how it was computed, and why it is what it is."""

    accountant: str
    cross_check_epsilon: Extended | None
    cross_check_accountant: str | None
    noise_multiplier: NonNegative | None
    rounds: Count
    why: str


class BestAttack(Part):
    """The attack that got the most out of one observer's view."""

    attack: str
    workload: str
    defence: str
    psnr: Number
    margin_db: Number
    """PSNR above the best trivial guess."""
    trivial_psnr: Number


class ObserverEvidence(Part):
    """What one observer sees, what it is guaranteed not to learn, and what was got out of its view."""

    observer: str
    sees: str
    protected: bool
    """Whether the privacy mechanism protects against this observer; needs a finite ε."""
    guarantee: Guarantee
    best_attack: BestAttack | None

    @model_validator(mode="after")
    def _no_empty_promise(self) -> ObserverEvidence:
        if self.protected and math.isinf(self.guarantee.epsilon):
            raise ValueError(f"observer {self.observer!r} is called protected, but its ε is infinite")
        return self


class AccuracyPoint(Part):
    """One round of one training."""

    round: Count
    test_accuracy: Share | None
    train_accuracy: Share | None = None
    loss: NonNegative | None = None


class Accuracy(Part):
    """The training as configured beside the same without protection; empty and ``None`` where not measured."""

    protected: tuple[AccuracyPoint, ...]
    unprotected: tuple[AccuracyPoint, ...]
    final_protected: Share | None
    final_unprotected: Share | None
    gap: Number | None
    """Final test accuracy without protection less that with it."""


class RoundEvidence(Part):
    """One round of the training as configured."""

    round: Count
    cohort: Count
    survivors: Count
    dropped: Count
    non_finite: Count
    clipped_fraction: Share | None
    signal_to_noise: Extended | None
    """Norm of the sum over the expected norm of the noise: infinite without noise."""
    aborted: str | None
    """Why the round ended without a new model."""
    epsilon_spent: Extended | None
    """After this round, for the observers that the ledger names."""
    seconds: NonNegative
    upload_bytes: Count


class TextScores(Part):
    """Reconstructed text beside the true one, means over the sequences; F1 but for shares."""

    token_set: Share
    token_accuracy: Share
    exact: Share
    rouge1: Share
    rouge2: Share
    rouge_l: Share


class AttackEvidence(Part):
    """One attack on one observation: scores beside those of trivial guesses, or the reason why there are none."""

    observer: str
    defence: str
    workload: str
    kind: str
    attack: str
    round: Count
    contributors: NonNegative
    failure: str | None
    mse: NonNegative | None
    psnr: Number | None
    ssim: Number | None
    label_correct: bool | None
    trivial_psnr: dict[str, Number] | None
    """By the name of the guess."""
    margin_db: Number | None
    text: TextScores | None = None
    """Of text, which has no scores of images."""
    seconds: NonNegative
    evaluations: Count
    original: Png | None = None
    reconstruction: Png | None = None

    @model_validator(mode="after")
    def _scores_or_failure(self) -> AttackEvidence:
        scored = self.psnr is not None and self.margin_db is not None and bool(self.trivial_psnr)
        if [scored, self.text is not None, self.failure is not None].count(True) != 1:
            raise ValueError("an attack has a failure, or psnr, trivial_psnr and margin_db, or scores of text")
        return self


class StageCost(Part):
    """Traffic and time of one stage of the protocol, all rounds and clients together."""

    stage: str
    upload_bytes: Count | None
    seconds: NonNegative | None


class SecureAggregation(Part):
    """How the server came to the sums."""

    mode: Literal["off", "ring", "protocol"]
    threshold: str | None
    """The rule, in words."""
    ring_bits: Count | None
    """The widest of all rounds."""
    stages: tuple[StageCost, ...] | None
    aborted_rounds: Count
    abort_probability: Share | None
    """Chance of a round to abort at the configured rate of dropouts."""
    assumptions: tuple[str, ...]


class Ledger(PrivacyLoss):
    """What the ledger says, recomputed from its file, and the hashes that tie the run's files together."""

    observers: tuple[str, ...]
    """Against whom the recomputed ε holds."""
    entries: Count
    attempts: Count
    reserved: Count
    committed: Count
    aborted: Count
    spent: Count
    """Releases that ε counts."""
    torn_bytes: Count
    """Length of an entry cut off by a kill; 0 for none."""
    head_sha256: Sha256
    transcript_sha256: Sha256 | None
    weights_sha256: Sha256 | None


class OperatingPoint(Part):
    """What an attack finds at a bounded rate of false alarms; intervals are Clopper-Pearson, 95 %."""

    fpr_at_most: Share
    fpr: Share
    """Measured; at most the bound."""
    fpr_interval: tuple[Share, Share]
    tpr: Share
    tpr_interval: tuple[Share, Share]


class MembershipAttack(Part):
    """One attack on the membership of examples, or of clients, in the released model."""

    method: str
    unit: Literal["example", "client"]
    members: Count
    non_members: Count
    assumption: str
    """What the attacker was given beside the model."""
    auc: Share
    at_1_percent_fpr: OperatingPoint | None
    """``None`` where the non-members are too few to resolve the rate."""
    at_0_1_percent_fpr: OperatingPoint | None
    roc: tuple[tuple[Share, Share], ...]
    """``(false-positive rate, true-positive rate)``, from (0, 0) to (1, 1)."""


class Membership(Part):
    """Membership inference on the released model, by method and unit."""

    non_members_from: str
    """Whether members and non-members differ in membership alone rests on this."""
    shadow_models: Count
    """Trained on random halves of members and non-members; 0 where no method needs any."""
    attacks: Annotated[tuple[MembershipAttack, ...], Field(min_length=1)]


class CanaryEstimate(Part):
    """A heuristic estimate of ε with an interval (Andrew et al. 2023)."""

    method: str
    epsilon: Extended
    low: Extended
    high: Extended
    confidence: Share


class CanaryObserver(Part):
    """What canaries showed to one observer, beside the claim."""

    observer: str
    sees: str
    claim: Extended
    """ε claimed; infinite where nothing is."""
    estimates: tuple[CanaryEstimate, ...]
    bound: NonNegative
    """Lower bound on ε (Steinke, Nasr, Jagielski 2023)."""
    bound_confidence: Share
    guesses: Count
    right: Count
    flagged: bool
    """Whether an interval or the bound lies above the claim."""
    histogram_low: Number | None
    """Lower edge of the scores' histogram; ``None`` where scores are not finite."""
    histogram_high: Number | None
    present: tuple[Count, ...]
    """Canaries that took part, by bins of equal width."""
    absent: tuple[Count, ...]

    @model_validator(mode="after")
    def _flag_fits(self) -> CanaryObserver:
        if self.flagged != any(low > self.claim for low in (self.bound, *(e.low for e in self.estimates))):
            raise ValueError("a claim is flagged exactly when an interval or the bound lies above it")
        if len(self.present) != len(self.absent):
            raise ValueError("both histograms have the same bins")
        return self


class Canaries(Part):
    """Canary clients in the training, and what they say about the claims."""

    kind: Literal["update", "input"]
    count: Count
    """There or not by a fair coin each."""
    included: Count
    participations: Count
    """Canaries in sums, all rounds together."""
    rounds: Count
    noise_share: NonNegative
    """Expected norm of a round's canaries over that of its noise."""
    accuracy: Share | None
    accuracy_without: Share | None
    """Of the same training without canaries; ``None`` where it was not run."""
    delta: Share
    unit: str
    neighbouring: str
    sampling: str
    observers: tuple[CanaryObserver, ...]


class UnnoisedQuantity(Part):
    """A figure of the run that is published as it is, outside the guarantee."""

    name: str
    why: str
    """Why it matters."""


class Evidence(Part):
    """The content of ``report.json``."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: Run
    verdict: Verdict
    observers: tuple[ObserverEvidence, ...]
    accuracy: Accuracy
    rounds: tuple[RoundEvidence, ...]
    attacks: tuple[AttackEvidence, ...]
    secure_aggregation: SecureAggregation
    ledger: Ledger
    membership: Membership | None = None
    canaries: Canaries | None = None
    unnoised: tuple[UnnoisedQuantity, ...]
    limits: tuple[str, ...]

    @model_validator(mode="after")
    def _one_row_each(self) -> Evidence:
        names = [entry.observer for entry in self.observers]
        if len(names) != len(set(names)):
            raise ValueError(f"each observer has one entry, got {', '.join(names)}")
        return self


def png(pixels: NDArray[Any]) -> str:
    """Picture of an example for ``AttackEvidence``.

    Args:
        pixels: In [0, 1]; ``[height, width]``, ``[height, width, 1]`` (both grey) or ``[height, width, 3]``.

    Raises:
        ValueError: Another shape, or a pixel that is not finite or out of range.
    """
    from PIL import Image

    image = np.asarray(pixels, np.float64)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)) or not image.size:
        raise ValueError(
            f"pixels have shape {np.shape(pixels)}: [height, width], with 1 or 3 channels or none, is needed"
        )
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"pixels must be finite and within [0, 1], got {image.min()} to {image.max()}")
    buffer = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return PNG_PREFIX + base64.b64encode(buffer.getvalue()).decode("ascii")
