"""The evidence of one run: everything that ``report.json`` holds and the page shows, and nothing else.

Frozen models without behaviour: whoever has the results fills them in, the report renders them. JSON has no
infinity, so it is written as the string ``inf``; NaN is refused, an unknown value is ``None``.
"""

from privfed.audit.evidence.document import (
    SCHEMA_VERSION,
    Evidence,
    UnnoisedQuantity,
    Verdict,
)
from privfed.audit.evidence.empirical import (
    Canaries,
    CanaryEstimate,
    CanaryObserver,
    Membership,
    MembershipAttack,
    OperatingPoint,
    SelfCheck,
)
from privfed.audit.evidence.exposure import (
    RECOVERED_TOKENS,
    RECOVERY_MARGIN_DB,
    AttackEvidence,
    BestAttack,
    ObserverEvidence,
    TextScores,
)
from privfed.audit.evidence.privacy import (
    Guarantee,
    Ledger,
    PrivacyLoss,
)
from privfed.audit.evidence.run import (
    Accuracy,
    AccuracyPoint,
    Data,
    RoundEvidence,
    Run,
    SecureAggregation,
    StageCost,
)
from privfed.audit.evidence.types import (
    PNG_PREFIX,
    Count,
    Extended,
    NonNegative,
    Number,
    Part,
    Png,
    Sha256,
    Share,
    Tree,
    png,
)

__all__ = [
    "PNG_PREFIX",
    "RECOVERED_TOKENS",
    "RECOVERY_MARGIN_DB",
    "SCHEMA_VERSION",
    "Accuracy",
    "AccuracyPoint",
    "AttackEvidence",
    "BestAttack",
    "Canaries",
    "CanaryEstimate",
    "CanaryObserver",
    "Count",
    "Data",
    "Evidence",
    "Extended",
    "Guarantee",
    "Ledger",
    "Membership",
    "MembershipAttack",
    "NonNegative",
    "Number",
    "ObserverEvidence",
    "OperatingPoint",
    "Part",
    "Png",
    "PrivacyLoss",
    "RoundEvidence",
    "Run",
    "SecureAggregation",
    "SelfCheck",
    "Sha256",
    "Share",
    "StageCost",
    "TextScores",
    "Tree",
    "UnnoisedQuantity",
    "Verdict",
    "png",
]
