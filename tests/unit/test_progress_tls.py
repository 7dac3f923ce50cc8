"""Certificates: made once, agreed on by replicas, renewed leaf by leaf under one CA, taken up without a restart."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from finetune_operator.progress.certificates import (
    CA_LIFE,
    LEAF_LIFE,
    Bundle,
    new_ca,
    new_leaf,
    server_names,
    up_to_date,
)
from finetune_operator.progress.tls import TlsKeeper, TlsSecretError
from tests.support.progress import LOOPBACK, KnownJobs, MemoryTlsStore, TableReviewer, served

NOW = datetime(2026, 5, 1, tzinfo=UTC)
NAMES = ("127.0.0.1", "finetune-operator.finetune-system.svc")


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def extension(cert: x509.Certificate, kind: Any) -> Any:
    return cert.extensions.get_extension_for_class(kind).value


def test_a_new_bundle_is_a_ten_year_ca_and_a_leaf_of_ninety_days() -> None:
    bundle = up_to_date(None, names=NAMES, now=NOW)
    ca, leaf = bundle.ca.cert, bundle.leaf.cert
    assert ca.not_valid_after_utc == NOW + CA_LIFE
    assert leaf.not_valid_after_utc == NOW + LEAF_LIFE
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert extension(ca, x509.BasicConstraints).ca
    assert not extension(leaf, x509.BasicConstraints).ca
    assert extension(leaf, x509.SubjectAlternativeName).get_values_for_type(x509.DNSName) == [NAMES[1]]
    leaf.verify_directly_issued_by(ca)


def test_what_is_stored_comes_back_whole() -> None:
    bundle = up_to_date(None, names=NAMES, now=NOW)
    stored = bundle.to_secret()
    assert set(stored) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    read = Bundle.from_secret(stored)
    assert read
    assert read.to_secret() == stored


@pytest.mark.parametrize(
    ("after", "names", "kept"),
    [
        pytest.param(timedelta(0), NAMES, True, id="new"),
        pytest.param(timedelta(days=59), NAMES, True, id="two-thirds-not-over"),
        pytest.param(timedelta(days=61), NAMES, False, id="two-thirds-over"),
        pytest.param(timedelta(days=400), NAMES, False, id="leaf-long-over"),
        pytest.param(timedelta(0), NAMES[:1], True, id="fewer-names-wanted"),
        pytest.param(timedelta(0), (*NAMES, "gateway.example.com"), False, id="another-name-wanted"),
    ],
)
def test_only_the_leaf_is_renewed(after: timedelta, names: tuple[str, ...], kept: bool) -> None:
    bundle = up_to_date(None, names=NAMES, now=NOW)
    later = up_to_date(bundle, names=names, now=NOW + after)
    assert (later is bundle) is kept
    assert later.ca == bundle.ca
    assert later.leaf.cert.not_valid_after_utc > NOW + after + LEAF_LIFE / 3 - timedelta(hours=1)


def test_a_ca_that_would_end_before_its_leaf_is_replaced() -> None:
    bundle = up_to_date(None, names=NAMES, now=NOW)
    assert up_to_date(bundle, names=NAMES, now=NOW + CA_LIFE - timedelta(days=91)).ca == bundle.ca
    assert up_to_date(bundle, names=NAMES, now=NOW + CA_LIFE - timedelta(days=89)).ca != bundle.ca


def test_a_leaf_of_another_ca_is_replaced() -> None:
    bundle = up_to_date(None, names=NAMES, now=NOW)
    stranger = new_leaf(new_ca(now=NOW), names=NAMES, now=NOW)
    later = up_to_date(replace(bundle, leaf=stranger), names=NAMES, now=NOW)
    assert later.ca == bundle.ca
    later.leaf.cert.verify_directly_issued_by(bundle.ca.cert)


def swapped_keys(data: dict[str, bytes]) -> dict[str, bytes]:
    return {**data, "ca.key": data["tls.key"], "tls.key": data["ca.key"]}


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: {**data, "tls.crt": b"garbage"}, id="garbage"),
        pytest.param(lambda data: {k: v for k, v in data.items() if k != "ca.key"}, id="part-missing"),
        pytest.param(swapped_keys, id="keys-swapped"),
        pytest.param(lambda _: {}, id="empty"),
    ],
)
def test_what_cannot_be_used_is_read_as_nothing(spoil: Any) -> None:
    assert Bundle.from_secret(spoil(up_to_date(None, names=NAMES, now=NOW).to_secret())) is None


@pytest.mark.parametrize(
    ("url", "first"),
    [
        ("https://finetune-operator.tuning.svc:8443", "finetune-operator.tuning.svc"),
        ("https://192.0.2.7:8443", "192.0.2.7"),
        ("https://[2001:db8::1]:8443", "2001:db8::1"),
        ("https://progress.example.com", "progress.example.com"),
    ],
)
def test_names_are_the_urls_host_and_the_services(url: str, first: str) -> None:
    names = server_names(url, namespace="tuning")
    assert names[0] == first
    assert {"finetune-operator.tuning.svc", "finetune-operator.tuning.svc.cluster.local"} <= set(names)
    assert len(set(names)) == len(names)


def test_a_url_without_a_host_is_refused() -> None:
    with pytest.raises(ValueError, match="FINETUNE_STATUS_URL='finetune-operator' names no host"):
        server_names("finetune-operator", namespace="tuning")


async def test_an_empty_secret_is_filled_once() -> None:
    store = MemoryTlsStore()
    first = TlsKeeper(store, names=NAMES, clock=Clock())
    await first.refresh()
    again = TlsKeeper(store, names=NAMES, clock=Clock())
    await again.refresh()
    assert store.writes == 1
    assert first.ca_pem == again.ca_pem
    assert first.ca_pem.startswith("-----BEGIN CERTIFICATE-----")


async def test_a_missing_secret_is_said_so() -> None:
    keeper = TlsKeeper(MemoryTlsStore({"data": None, "version": 1}), names=NAMES)
    with pytest.raises(TlsSecretError, match="there is no Secret finetune-operator-tls"):
        await keeper.refresh()
    with pytest.raises(TlsSecretError, match="not been read"):
        _ = keeper.ca_pem


class MeetingStore(MemoryTlsStore):
    """Reads wait for each other once, so that both replicas see the empty Secret."""

    def __init__(self, shared: dict[str, Any], *, barrier: asyncio.Barrier) -> None:
        super().__init__(shared)
        self._barrier, self._met = barrier, False

    async def read(self) -> dict[str, bytes] | None:
        data = await super().read()
        if not self._met:
            self._met = True
            await self._barrier.wait()
        return data


async def test_two_replicas_that_start_at_once_agree() -> None:
    shared: dict[str, Any] = {"data": {}, "version": 1}
    barrier = asyncio.Barrier(2)
    stores = [MeetingStore(shared, barrier=barrier) for _ in range(2)]
    keepers = [TlsKeeper(store, names=NAMES, clock=Clock()) for store in stores]
    await asyncio.gather(*(keeper.refresh() for keeper in keepers))
    assert sum(store.writes for store in stores) == 1
    assert keepers[0].ca_pem == keepers[1].ca_pem == shared["data"]["ca.crt"].decode()


class BusyStore(MemoryTlsStore):
    """Somebody else always writes first."""

    async def write(self, data: dict[str, bytes]) -> bool:
        return False


async def test_endless_conflicts_are_an_error_not_a_loop() -> None:
    with pytest.raises(TlsSecretError, match="5 times"):
        await TlsKeeper(BusyStore(), names=NAMES).refresh()


async def serial_seen_by(port: int, *, ca_pem: str) -> int:
    """Return the serial number that a client which trusts only this CA is served."""
    trust = ssl.create_default_context(cadata=ca_pem)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return x509.load_der_x509_certificate(der).serial_number


async def test_a_running_server_serves_the_renewed_leaf_to_who_trusts_the_old_ca() -> None:
    # Made in the past, so that the renewed leaf is valid on the client's clock, which nobody injects.
    clock = Clock(datetime.now(UTC) - timedelta(days=70))
    keeper = TlsKeeper(MemoryTlsStore(), names=LOOPBACK, clock=clock)
    async with served(jobs=KnownJobs(), reviewer=TableReviewer(), tls=keeper) as run:
        ca_pem, before = keeper.ca_pem, await serial_seen_by(run.server.port, ca_pem=keeper.ca_pem)
        await keeper.refresh()
        assert await serial_seen_by(run.server.port, ca_pem=ca_pem) == before
        clock.now = datetime.now(UTC)
        await keeper.refresh()
        assert await serial_seen_by(run.server.port, ca_pem=ca_pem) != before
        assert keeper.ca_pem == ca_pem


async def test_what_another_replica_renewed_is_taken_up() -> None:
    clock, shared = Clock(), MemoryTlsStore().shared
    ours = TlsKeeper(MemoryTlsStore(shared), names=NAMES, clock=clock)
    theirs = TlsKeeper(MemoryTlsStore(shared), names=NAMES, clock=clock)
    await ours.refresh()
    clock.now += timedelta(days=61)
    await theirs.refresh()
    version = shared["version"]
    await ours.refresh()
    assert shared["version"] == version
    assert vars(ours)["_bundle"].leaf.cert == vars(theirs)["_bundle"].leaf.cert


async def test_a_client_that_trusts_another_ca_refuses_the_server() -> None:
    async with served(jobs=KnownJobs(), reviewer=TableReviewer()) as run:
        stranger = new_ca(now=datetime.now(UTC)).cert_pem.decode()
        with pytest.raises(ssl.SSLCertVerificationError):
            await serial_seen_by(run.server.port, ca_pem=stranger)
