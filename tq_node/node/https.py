"""The certificates of HTTPS, for clients of this node: read at the start, and again when changed.

OpenSSL is imported only where certificates are given."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IProtocolFactory
from twisted.web.iweb import IPolicyForHTTPS

from tq_node.api.http.site import ApiSite
from tq_node.cli.config import NodeSettings
from tq_node.node.rereading import Rereading
from tq_node.reread_files import RereadFiles
from tq_node.runtime.bootstrap.credentials import BadCredentials, refuse_exposed

if TYPE_CHECKING:
    from OpenSSL import SSL


def https_files(settings: NodeSettings) -> RereadFiles[SSL.Context] | None:
    """The files of ``--http-cert``, ``--http-key`` and ``--http-client-ca``; None: not given.

    :raises BadCredentials: one of them, or that of ``--ca``, can't be used."""
    _check_authority(settings)
    certificate, key, authority = settings.http_cert, settings.http_key, settings.http_client_ca
    if certificate is None or key is None:
        return None
    from tq_node.api.http.tls import read_context

    def read() -> SSL.Context:
        refuse_exposed("--http-key", key, stat.S_IMODE(key.stat().st_mode), insecure=settings.insecure_http)
        return read_context(certificate, key, authority)

    paths = [path for path in (certificate, key, authority) if path is not None]
    try:
        return RereadFiles("--http-cert", paths, read)
    except BadCredentials:
        raise
    except OSError as why:
        raise BadCredentials(f"--http-key: {str(key)!r}: {why.strerror}") from None
    except ValueError as why:
        line = " ".join(str(why).split())
        raise BadCredentials(f"{_option(line, settings)}: {line}") from None


def asking_policy(settings: NodeSettings) -> IPolicyForHTTPS | None:
    """How this node asks others by HTTPS; None: it asks none. It shows the certificate that it
    shows to its own clients, else the one for its peers."""
    if not any(address.is_tls for address in settings.join):
        return None
    from tq_node.certificates import AskingPolicy

    shown = (settings.http_cert, settings.http_key) if settings.http_cert else (settings.peer_cert, settings.peer_key)
    certificate, key = shown
    return AskingPolicy(settings.ca, None if certificate is None or key is None else (certificate, key))


def _check_authority(settings: NodeSettings) -> None:
    if settings.ca is None:
        return
    from tq_node.certificates import read_certificates

    try:
        read_certificates(settings.ca)
    except ValueError as why:
        raise BadCredentials(" ".join(f"--ca: {why}".split())) from None


def _option(why: str, settings: NodeSettings) -> str:
    """The option whose file is unfit; one file may be given for several."""
    if "private key" in why or "is not the key of" in why:
        return "--http-key"
    is_authority = settings.http_client_ca != settings.http_cert and why.startswith(f"{settings.http_client_ca}: ")
    return "--http-client-ca" if is_authority else "--http-cert"


def secured(site: ApiSite, files: RereadFiles[SSL.Context] | None, rereading: Rereading) -> IProtocolFactory:
    """What the HTTP ports listen with: the site, behind TLS where there are certificates."""
    if files is None:
        return site
    from tq_node.api.http.tls import HttpsFactory

    rereading.add(files)
    return HttpsFactory(files, site)
