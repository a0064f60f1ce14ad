"""Mail through a real server: by TLS wherever it leaves this machine, and never a password in clear."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message as Mail
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from mlops_assets.processes import free_port
from resources.alerts import Alert, AlertResource, Message, Told, outbox
from resources.alerts.channels import RefusedError, smtp

ALERT = Alert("flights/late_arrival\nfailed", "no røws at all", link="http://ui/1", suggestion="Materialize it.")
MESSAGE = Message("abc", "", (Told(ALERT),))


@dataclass
class Inbox:
    """What a server took, and who said who they are."""

    mails: list[Mail] = field(default_factory=list)
    receivers: list[str] = field(default_factory=list)
    logins: list[tuple[str, str]] = field(default_factory=list)
    refuses: str = ""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802  aiosmtpd's name
        if self.refuses:
            return self.refuses
        self.mails.append(message_from_bytes(envelope.content))
        self.receivers += envelope.rcpt_tos
        return "250 OK"

    def authenticate(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
        login = (given.login.decode(), given.password.decode())
        self.logins.append(login)
        return AuthResult(success=login == ("mlops", "hunter/2"), handled=False)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def start(inbox: Inbox, certificate: Path) -> Iterator[Callable[..., int]]:
    """Starts a server and returns its port; `tls` is none, starttls or implicit."""
    with ExitStack() as stack:

        def started(tls: str = "none", password: bool = False) -> int:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            options: dict[str, Any] = {"ssl_context": context} if tls == "implicit" else {}
            if tls == "starttls":
                options |= {"tls_context": context, "require_starttls": True}
            if password:
                secure = {"auth_require_tls": tls == "starttls"}
                options |= {"authenticator": inbox.authenticate, "auth_required": True, **secure}
            server = Controller(inbox, hostname="127.0.0.1", port=free_port(8825), **options)
            server.start()
            stack.callback(server.stop)
            return int(server.port)

        yield started


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of 127.0.0.1, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(host, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_mail_says_what_to_do_and_where_to_look(start: Callable[..., int], inbox: Inbox, home: Path) -> None:
    """From the resource through the outbox to every receiver; a line break in a title begins no header."""
    address = f"smtp://127.0.0.1:{start()}?from=alerts@here&to=a@there,b@there"
    AlertResource(channels={"smtp": address}).send(ALERT)
    assert AlertResource(channels={"smtp": address}).deliver(10)
    assert [one.state for one in outbox.last(1)[0].deliveries] == ["delivered"]
    (mail,) = inbox.mails
    assert mail["Subject"] == "[error] flights/late_arrival failed" and inbox.receivers == ["a@there", "b@there"]
    body = mail.get_payload(decode=True).decode()  # type: ignore[union-attr]
    assert "no røws at all" in body and "Materialize it." in body and "page: http://ui/1" in body


def test_a_double_can_be_known(start: Callable[..., int], inbox: Inbox) -> None:
    """Two attempts at a message have one Message-ID."""
    address = f"smtp://127.0.0.1:{start()}?from=alerts@here&to=a@there"
    for _ in range(2):
        smtp.deliver(address, MESSAGE, 5)
    assert [mail["Message-ID"] for mail in inbox.mails] == ["<abc@mlops-assets>"] * 2


@pytest.mark.parametrize(("scheme", "tls"), [("smtp", "starttls"), ("smtps", "implicit")])
def test_a_password_goes_by_tls(
    start: Callable[..., int],
    inbox: Inbox,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    tls: str,
) -> None:
    """To a server whose certificate is known; a password may hold what an address must escape."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    address = f"{scheme}://mlops:hunter%2F2@127.0.0.1:{start(tls, password=True)}?from=alerts@here&to=a@there"
    smtp.deliver(address, MESSAGE, 5)
    assert len(inbox.mails) == 1 and inbox.logins == [("mlops", "hunter/2")]


def test_an_unknown_certificate_is_not_trusted(start: Callable[..., int], inbox: Inbox) -> None:
    """Whoever answers in the server's place gets nothing."""
    with pytest.raises(ssl.SSLCertVerificationError):
        smtp.deliver(f"smtp://127.0.0.1:{start('starttls')}?from=a@here&to=a@there", MESSAGE, 5)
    assert inbox.mails == []


def test_a_password_never_goes_in_clear(start: Callable[..., int], inbox: Inbox) -> None:
    """Not even on this machine, whatever the address allows."""
    address = f"smtp://mlops:hunter%2F2@127.0.0.1:{start(password=True)}?from=a@here&to=a@there&tls=none"
    with pytest.raises(RefusedError, match=r"no TLS.*MLOPS_ALERT_SMTP"):
        smtp.deliver(address, MESSAGE, 5)
    assert inbox.logins == []


@pytest.mark.parametrize(("host", "allowed"), [("mail.example", False), ("127.0.0.1", True), ("localhost", True)])
def test_nothing_leaves_the_machine_in_clear_unless_that_is_said(host: str, allowed: bool) -> None:
    assert smtp.Mailbox.of(f"smtp://{host}?from=a@b&to=c@d").plain_allowed is allowed
    assert smtp.Mailbox.of(f"smtp://{host}?from=a@b&to=c@d&tls=none").plain_allowed


def test_a_wrong_password_and_a_refused_mail_are_final(
    start: Callable[..., int], inbox: Inbox, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server says for good is not asked again; what it says for now is."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    port = start("starttls", password=True)
    with pytest.raises(RefusedError, match="535"):
        smtp.deliver(f"smtp://mlops:wrong@127.0.0.1:{port}?from=a@here&to=a@there", MESSAGE, 5)
    inbox.refuses = "554 no"
    with pytest.raises(RefusedError, match="554"):
        smtp.deliver(f"smtp://mlops:hunter%2F2@127.0.0.1:{port}?from=a@here&to=a@there", MESSAGE, 5)
    inbox.refuses = "451 later"
    with pytest.raises(Exception, match="451") as later:
        smtp.deliver(f"smtp://mlops:hunter%2F2@127.0.0.1:{port}?from=a@here&to=a@there", MESSAGE, 5)
    assert not isinstance(later.value, RefusedError)


@pytest.mark.parametrize(
    "address",
    [
        "http://u:hunter2@mail?from=a@b&to=c@d",
        "smtp://u:hunter2@mail?from=a@b",
        "smtp://u:hunter2@mail?to=c@d",
        "smtp://u:hunter2@mail:port?from=a@b&to=c@d",
        "smtp://u:hunter2@[::1?from=a@b&to=c@d",
        "smtp://?from=a@b&to=c@d",
    ],
)
def test_an_address_of_another_form_is_refused_without_being_shown(address: str) -> None:
    with pytest.raises(RefusedError, match="The address is not smtp") as refusal:
        smtp.deliver(address, MESSAGE, 5)
    assert "hunter2" not in str(refusal.value)
