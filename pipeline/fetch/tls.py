"""How the certificates of servers are verified, by every version of Python alike."""

import ssl
from functools import cache


@cache
def tls_context() -> ssl.SSLContext:
    """A TLS context that verifies certificates against this machine's certificate authorities, as curl does.

    Python 3.13 made `VERIFY_X509_STRICT` the default, which refuses certificates that curl, browsers and Python 3.12
    accept: those without a key identifier, for example, which many private authorities issue. `PARTIAL_CHAIN`, the
    other new default, trusts an intermediate authority that is in the machine's list.
    """
    context = ssl.create_default_context()
    context.verify_flags = (context.verify_flags & ~ssl.VERIFY_X509_STRICT) | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["http/1.1"])
    return context
