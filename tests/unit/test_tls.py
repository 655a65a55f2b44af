"""Tests which certificates are accepted, with handshakes in memory."""

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pairmill.pipeline.fetch.tls import tls_context

HOST = "pictures.example"


def issue(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, ca: bool
) -> bytes:
    """A certificate with only what curl and browsers require: no key identifiers, and nothing marked critical."""
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in (issuer, subject)]
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(*names, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.BasicConstraints(True, None) if ca else x509.SubjectAlternativeName([x509.DNSName(HOST)]), False
        )
        .sign(by, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """A whole handshake. Raises SSLCertVerificationError if the client does not accept the server's certificate."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for end in (ours, theirs):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ours.version()


@pytest.mark.parametrize("trusted", ["root", "intermediate"])
def test_a_certificate_that_curl_accepts_is_accepted_on_every_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str
) -> None:
    root, middle, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    authorities = {
        "root": issue("root", root, "root", root, ca=True),
        "intermediate": issue("middle", middle, "root", root, ca=True),
    }
    private = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "server.pem").write_bytes(
        private + issue(HOST, leaf, "middle", middle, ca=False) + authorities["intermediate"]
    )
    (tmp_path / "trusted.pem").write_bytes(authorities[trusted])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    client = tls_context.__wrapped__()  # not the cached one, which trusts other authorities
    shake_hands(client, server, HOST)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(client, server, "other.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"local issuer|self-signed"):
        shake_hands(tls_context.__wrapped__(), server, HOST)
