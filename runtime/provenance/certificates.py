"""Certificates: those that are made here, and whether a chain of them may sign content today."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from ..errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.x509 import Certificate

LASTS = timedelta(days=3650)  # without a time stamp a signature is as good as its certificate now
SLOW_CLOCK = timedelta(days=1)
# What signs, by curve: the algorithm's name, and bytes of r and of s.
CURVES = {"secp256r1": ("es256", 32), "secp384r1": ("es384", 48), "secp521r1": ("es512", 66)}


def issue(
    name: str,
    key: EllipticCurvePrivateKey,
    by: EllipticCurvePrivateKey,
    issuer: Certificate | None,
    lasts: timedelta = LASTS,
) -> Certificate:
    """A new certificate of `key`, by whom `issuer` is about; by itself, an authority, if None.

    The profile is C2PA's: section "Certificate Profile" of its specification.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    is_authority, now = issuer is None, datetime.now(timezone.utc)
    attributes = {NameOID.ORGANIZATION_NAME: name, NameOID.COMMON_NAME: name}
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes.items()])
    builder = (
        x509.CertificateBuilder(subject_name=subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lasts) - SLOW_CLOCK)
        .not_valid_after(now + lasts)
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
        .add_extension(_usage(is_authority), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False)
    )
    if not is_authority:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, False)
    return builder.sign(by, hashes.SHA256())


def _usage(is_authority: bool) -> Any:
    from cryptography.x509 import KeyUsage

    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    allowed = {"key_cert_sign", "crl_sign"} if is_authority else {"digital_signature"}
    return KeyUsage(**{name: name in allowed for name in names})


def checked_chain(text: bytes, where: str) -> list[Certificate]:
    """Those of a text that vouch for each other today, and whose leaf, the first, may sign.

    where: what refusals call the text. Raises `UsageError`.
    """
    chain = chain_of(text, where)
    for certificate in chain:
        check_dates(certificate, where)
    _check_order(chain, where)
    _check_leaf(chain[0], where)
    return chain


def chain_of(text: bytes, where: str) -> list[Certificate]:
    """The certificates of a text in PEM. Raises `UsageError` for one that holds none."""
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(text)
    except ValueError:
        raise UsageError(f"sign chain {where!r} is no chain of certificates in PEM") from None


def check_dates(certificate: Certificate, where: str) -> None:
    """Raises `UsageError` for one that has expired, or is not good yet."""
    now, name = datetime.now(timezone.utc), name_of(certificate)
    if now > certificate.not_valid_after_utc:
        raise UsageError(
            f"the certificate of {name!r} in {where!r} expired on"
            f" {certificate.not_valid_after_utc:%Y-%m-%d}"
        )
    if now < certificate.not_valid_before_utc:
        raise UsageError(
            f"the certificate of {name!r} in {where!r} begins on"
            f" {certificate.not_valid_before_utc:%Y-%m-%d}; is the clock right?"
        )


def _check_order(chain: Sequence[Certificate], where: str) -> None:
    from cryptography.exceptions import InvalidSignature

    for certificate, issuer in pairwise(chain):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise UsageError(
                f"sign chain {where!r}: {name_of(issuer)!r} did not issue"
                f" {name_of(certificate)!r}; the leaf comes first, then who issued it"
            ) from None


def _check_leaf(leaf: Certificate, where: str) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import BasicConstraints, ExtendedKeyUsage, ExtensionNotFound, KeyUsage

    public = leaf.public_key()
    if not (isinstance(public, EllipticCurvePublicKey) and public.curve.name in CURVES):
        kind = type(public).__name__.lstrip("_")
        raise UsageError(f"the leaf of {where!r} has a key {kind}; P-256, P-384 or P-521 signs")
    found = leaf.extensions
    try:
        signs = found.get_extension_for_class(KeyUsage).value.digital_signature
        purposes = len(list(found.get_extension_for_class(ExtendedKeyUsage).value))
        if not signs or not purposes:
            raise ValueError
        if found.get_extension_for_class(BasicConstraints).value.ca:
            raise UsageError(f"the first certificate of {where!r} is an authority's, not a leaf")
    except (ExtensionNotFound, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"the leaf of {where!r} may not sign content: C2PA asks for basic constraints, the key"
            " usage digitalSignature and an extended key usage such as emailProtection"
        ) from None


def public_key_of(leaf: Certificate) -> EllipticCurvePublicKey:
    """A leaf's key: `_check_leaf` lets no other kind pass."""
    return cast("EllipticCurvePublicKey", leaf.public_key())


def name_of(certificate: Certificate) -> str:
    """The organization a certificate is about, else its common name, else all of its name."""
    from cryptography.x509.oid import NameOID

    for oid in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME):
        if found := certificate.subject.get_attributes_for_oid(oid):
            return str(found[0].value)
    return certificate.subject.rfc4514_string()
