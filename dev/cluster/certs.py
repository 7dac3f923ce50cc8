"""Keys and certificates of one cluster: a CA of its own, made anew at every start.

ECDSA throughout, because an RSA key takes longer to make than etcd takes to start.
"""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=365)
CLOCK_SKEW = datetime.timedelta(minutes=5)
SERVING_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Where a certificate and its key lie."""

    certificate: Path
    key: Path


class Authority:
    """The cluster's CA; it signs what the parts need and writes it into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("finetune-operator dev cluster", organization=None)
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(_pem(self._self_signed()))

    def serving(self, name: str, *, addresses: tuple[str, ...]) -> KeyPair:
        """Sign a server certificate for these addresses and the usual names."""
        names: list[x509.GeneralName] = [x509.DNSName(dns) for dns in SERVING_NAMES]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        return self._issue(
            name,
            subject=_name(name, organization=None),
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            alternatives=x509.SubjectAlternativeName(names),
        )

    def client(self, name: str, *, user: str, group: str) -> KeyPair:
        """Sign a client certificate for a Kubernetes user."""
        subject = _name(user, organization=group)
        return self._issue(name, subject=subject, usage=ExtendedKeyUsageOID.CLIENT_AUTH, alternatives=None)

    def key_pair(self, name: str) -> KeyPair:
        """Make a bare key pair, as service account tokens are signed with."""
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        pair = KeyPair(certificate=self.folder / f"{name}.pub", key=self.folder / f"{name}.key")
        pair.certificate.write_bytes(public)
        _write_key(pair.key, key)
        return pair

    def _issue(
        self,
        name: str,
        *,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, issuer=self._name, key=key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(_identifier_of(self._key.public_key()), critical=False)
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        pair = KeyPair(certificate=self.folder / f"{name}.crt", key=self.folder / f"{name}.key")
        pair.certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        _write_key(pair.key, key)
        return pair

    def _self_signed(self) -> x509.Certificate:
        public = self._key.public_key()
        builder = _builder(self._name, issuer=self._name, key=public)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        # Python 3.13 refuses a CA without these two.
        builder = builder.add_extension(_signing_only(), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _builder(subject: x509.Name, *, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - CLOCK_SKEW,
        not_valid_after=now + LIFETIME,
    )


def _identifier_of(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _signing_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str, *, organization: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
