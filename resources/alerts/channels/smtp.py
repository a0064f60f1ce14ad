"""E-mail: `smtp(s)://user:password@host:port?from=alerts@here&to=a@there,b@there`.

`smtps` is TLS from the first byte, `smtp` must be able to change to it (STARTTLS); certificates are verified, by
SSL_CERT_FILE where that is set. Without TLS only on this machine, or where the address says `tls=none`, and never with
a password.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.message import EmailMessage
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote, urlsplit

from resources.alerts.channels import RefusedError

if TYPE_CHECKING:
    from smtplib import SMTP

    from resources.alerts.alert import Message, Told

VARIABLE = "MLOPS_ALERT_SMTP"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PERMANENT = 500
PORTS = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True)
class Mailbox:
    """The server, who writes, and to whom."""

    host: str
    port: int
    implicit_tls: bool
    plain_allowed: bool
    user: str | None
    password: str | None
    sender: str
    receivers: tuple[str, ...]

    @classmethod
    def of(cls, address: str) -> Self:
        """Raises RefusedError for an address of another form."""
        try:
            url = urlsplit(address)
            port = url.port or PORTS[url.scheme]
        except (ValueError, KeyError):  # not from it: it would show the address
            raise _malformed() from None
        asked = parse_qs(url.query)
        receivers = tuple(one.strip() for one in ",".join(asked.get("to", [])).split(",") if one.strip())
        if not (url.hostname and receivers and asked.get("from")):
            raise _malformed()
        return cls(
            host=url.hostname,
            port=port,
            implicit_tls=url.scheme == "smtps",
            plain_allowed=url.hostname in LOOPBACK or asked.get("tls") == ["none"],
            user=unquote(url.username) if url.username else None,
            password=unquote(url.password) if url.password else None,
            sender=asked["from"][0],
            receivers=receivers,
        )


def _malformed() -> RefusedError:
    return RefusedError.of("The address is not smtp(s)://user:password@host:port?from=..&to=..", VARIABLE)


def deliver(address: str, message: Message, timeout: float) -> None:
    from smtplib import SMTPException, SMTPRecipientsRefused, SMTPResponseException

    mailbox = Mailbox.of(address)
    try:
        with _connected(mailbox, timeout) as server:
            if mailbox.user:
                server.login(mailbox.user, mailbox.password or "")
            server.send_message(mail(message, mailbox))
    except SMTPResponseException as error:
        if error.smtp_code >= PERMANENT:
            raise RefusedError.of(f"The server answered {error.smtp_code}", VARIABLE) from error
        raise
    except SMTPRecipientsRefused as error:
        if all(code >= PERMANENT for code, _ in error.recipients.values()):
            raise RefusedError.of(f"The server took none of {len(error.recipients)} receivers", VARIABLE) from error
        raise SMTPException("the server took no receiver for now") from error


def mail(message: Message, mailbox: Mailbox) -> EmailMessage:
    """One mail; its Message-ID is the message's own, so that a mailbox can drop a double."""
    mail = EmailMessage()
    mail["Subject"] = " ".join(f"[{message.severity}] {message.title}".split())
    mail["From"], mail["To"] = mailbox.sender, ", ".join(mailbox.receivers)
    mail["Message-ID"] = f"<{message.id}@mlops-assets>"
    mail["Auto-Submitted"] = "auto-generated"  # no out-of-office note comes back
    mail.set_content("\n\n".join(_paragraph(one) for one in message.told) + "\n")
    return mail


def _paragraph(told: Told) -> str:
    pages = [f"{name}: {url}" for name, url in told.alert.pages.items()]
    return "\n".join([told.alert.title, told.text, *filter(None, [told.alert.suggestion]), *pages])


def _connected(mailbox: Mailbox, timeout: float) -> SMTP:
    import smtplib
    import ssl

    tls = ssl.create_default_context()
    if mailbox.implicit_tls:
        return smtplib.SMTP_SSL(mailbox.host, mailbox.port, timeout=timeout, context=tls)
    server = smtplib.SMTP(mailbox.host, mailbox.port, timeout=timeout)
    server.ehlo()
    if server.has_extn("starttls"):
        server.starttls(context=tls)
    elif mailbox.password or not mailbox.plain_allowed:
        server.close()
        raise RefusedError.of("The server offers no TLS, and nothing is told to it in clear", VARIABLE)
    return server
