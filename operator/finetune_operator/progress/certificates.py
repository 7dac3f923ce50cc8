"""The status server's certificates: a CA for ten years and a leaf for ninety days that is renewed under it.

transformers' callback reads the CA once and keeps it for the life of a run, and runs take weeks: so only the leaf
changes. Everything here is a function of what is stored, the names and the time; `tls` does the storing.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from finetune_operator.api.constants import MANAGER

log = logging.getLogger(__name__)

CA_LIFE = timedelta(days=3653)
LEAF_LIFE = timedelta(days=90)
_SKEW = timedelta(hours=1)
"""Certificates begin this much earlier: nodes' clocks differ."""

_KEYS = ("ca.crt", "ca.key", "tls.crt", "tls.key")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_pem(cls, cert: bytes, key: bytes) -> Self:
        """Read a pair. Raises ValueError, TypeError, UnsupportedAlgorithm."""
        private = serialization.load_pem_private_key(key, password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TypeError("the key is no ECDSA key")
        pair = cls(x509.load_pem_x509_certificate(cert), private)
        if pair.cert.public_key() != private.public_key():
            raise ValueError("certificate and key do not belong together")
        return pair

    @property
    def cert_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


@dataclass(frozen=True, slots=True)
class Bundle:
    """CA and leaf, as they lie in the Secret."""

    ca: Pair
    leaf: Pair

    @classmethod
    def from_secret(cls, data: dict[str, bytes]) -> Self | None:
        """Read what is stored; None when nothing is, or nothing that can be used."""
        ca_cert, ca_key, cert, key = (data.get(name, b"") for name in _KEYS)
        if not any((ca_cert, ca_key, cert, key)):
            return None
        try:
            return cls(Pair.from_pem(ca_cert, ca_key), Pair.from_pem(cert, key))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            log.warning("stored certificates cannot be read and are made anew: %s", error)
            return None

    def to_secret(self) -> dict[str, bytes]:
        """Return the Secret's data."""
        return dict(zip(_KEYS, (self.ca.cert_pem, self.ca.key_pem, self.leaf.cert_pem, self.leaf.key_pem), strict=True))


def server_names(status_url: str, *, namespace: str) -> tuple[str, ...]:
    """Return the names that the leaf is for: the URL's host and the Service's names."""
    host = urlsplit(status_url).hostname
    if not host:
        raise ValueError(f"FINETUNE_STATUS_URL={status_url!r} names no host")
    service = [f"{MANAGER}.{namespace}", f"{MANAGER}.{namespace}.svc", f"{MANAGER}.{namespace}.svc.cluster.local"]
    return tuple(dict.fromkeys([host, *service]))


def up_to_date(bundle: Bundle | None, *, names: tuple[str, ...], now: datetime) -> Bundle:
    """Return the bundle itself while it serves; else one with a new leaf, or with a new CA where that ends too."""
    if bundle is None or bundle.ca.cert.not_valid_after_utc < now + LEAF_LIFE:
        ca = new_ca(now=now)
        return Bundle(ca, new_leaf(ca, names=names, now=now))
    if leaf_serves(bundle, names=names, now=now):
        return bundle
    return Bundle(bundle.ca, new_leaf(bundle.ca, names=names, now=now))


def leaf_serves(bundle: Bundle, *, names: tuple[str, ...], now: datetime) -> bool:
    """Tell whether the leaf is this CA's, has these names and is in the first two thirds of its life."""
    leaf = bundle.leaf.cert
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    return _issued_by(leaf, bundle.ca.cert) and set(names) <= _names_of(leaf) and now < start + (end - start) * 2 / 3


def new_ca(*, now: datetime) -> Pair:
    """Make a CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"{MANAGER} progress CA")
    builder = _builder(name, key=key, now=now, life=CA_LIFE).issuer_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def new_leaf(ca: Pair, *, names: tuple[str, ...], now: datetime) -> Pair:
    """Make a server certificate for these names under the CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    builder = _builder(_name(MANAGER), key=key, now=now, life=LEAF_LIFE).issuer_name(ca.cert.subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
    builder = builder.add_extension(authority, critical=False)
    return Pair(builder.sign(ca.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, *, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _SKEW).not_valid_after(now + life)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(cert: x509.Certificate) -> set[str]:
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(general.value) for general in names}


def _issued_by(cert: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
