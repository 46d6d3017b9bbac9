"""Imported once by the process that runs are forked from: all that every run would import and work out again.

TensorFlow is imported and not used, since it starts its threads when it is used first, and threads do not survive
a fork.
"""

from __future__ import annotations

import doomed
import sklearn.datasets
import tensorflow

import attacks
import privfed.audit.assemble
import privfed.audit.membership
import privfed.cli
import privfed.membership
import privfed.report
import privfed.runs
import privfed.verification
from privfed.privacy.accounting import account
from privfed.privacy.sampling import PoissonSampling

assert all((attacks, privfed, sklearn.datasets, tensorflow))
for rounds in range(1, doomed.ROUNDS + 1):  # what is spent so far is said after each round, and is cached
    account(doomed.NOISE, PoissonSampling(doomed.RATE), rounds, doomed.DELTA)
