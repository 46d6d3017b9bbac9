"""Real clients: the rounds of ``privfed.federated`` between processes, over gRPC and mutual TLS 1.3.

Clients train, clip, noise and mask; the server holds what ``privfed.secagg`` lets it hold. What each side checks,
and what that is worth: ``docs/deploy.md``.
"""

import os

# Leaves TLS 1.2 nothing to agree on, see ``tls``. gRPC reads it once, when it is first imported.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")
