"""What a server calls for a client, and what it does not."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kinema.runtime.errors import UsageError
from kinema.runtime.serve import addresses
from kinema.runtime.serve.addresses import check_url, may_call
from kinema.runtime.serve.fetching import Fetcher
from kinema.runtime.serve.limits import Limits

LIMITS = Limits(fetch_seconds=5.0, fetch_bytes=1000)
REFUSED = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1",
    "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "100.100.100.200",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254",
    "ff02::1", "2001:db8::1", "2001::1", "2002:7f00:1::", "3fff::1", "100::1", "4000::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "172.32.0.1", "192.0.1.1", "2606:4700::1111", "64:ff9b::808:808"]


@pytest.mark.parametrize("written", REFUSED)
def test_addresses_that_are_not_public_are_refused(written):
    assert not may_call(ip_address(written))


@pytest.mark.parametrize("written", PUBLIC)
def test_public_addresses_may_be_called(written):
    assert may_call(ip_address(written)) and may_call(ip_address(written), allow_private=True)


def test_private_ones_may_be_allowed_and_those_of_the_link_never():
    allowed = [written for written in REFUSED if may_call(ip_address(written), True)]
    assert allowed == [
        "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.9.9.9", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "::1", "fc00::1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/a",
        "gopher://example.com",
        "//example.com/a",
        "http://",
        "http:///a",
        "http://user:word@example.com/",
        "http://user@8.8.8.8/",
        "http://8.8.8.8:22/",
        "http://8.8.8.8:99999/",
        "http://8.8.8.8/a b",
        "http://8.8.8.8/\r\nHost: other",
        "http://[::1",
        "http://127.0.0.1/",
        "http://localhost/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::1]/",
        "https://169.254.169.254/latest/meta-data",
        "http://8.8.8.8/" + "a" * 9000,
    ],
)
def test_urls_that_must_not_be_called_are_refused(url):
    with pytest.raises(UsageError) as refused:
        check_url(url)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def answers(*names):
    """What a look-up finds, each time another of `names`; each a list of addresses."""
    told, real = iter(names), socket.getaddrinfo

    def look_up(host, port, *rest, **_):
        if host[0].isdigit():  # a connection to an address
            return real(host, port, *rest)
        found = next(told)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    return look_up


def test_every_address_of_a_name_is_checked(monkeypatch):
    monkeypatch.setattr(addresses.socket, "getaddrinfo", answers(["8.8.8.8", "10.0.0.1"]))
    with pytest.raises(UsageError, match="not public"):
        check_url("http://example.com/")


class Answers(BaseHTTPRequestHandler):
    """Says what `pages` has for a path: status, headers, chunks, and seconds between them."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        status, headers, chunks, wait = self.server.pages[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for chunk in chunks:
                self.wfile.write(chunk)
                self.wfile.flush()
                time.sleep(wait)
        except OSError:
            self.server.cut.set()

    def log_message(self, *_):
        pass


PNG = {"Content-Type": "image/png"}


@contextmanager
def listening(pages):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.pages, server.asked, server.cut = pages, [], threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield server
        finally:
            server.shutdown()


def fetch(url, into, **changes):
    return Fetcher(replace(LIMITS, **changes), allow_private=True).fetch(url, into)


def test_a_file_is_fetched_whole(tmp_path):
    length = {**PNG, "Content-Length": "1000"}
    with listening({"/a?b=1": (200, length, [b"x" * 600, b"y" * 400], 0)}) as server:
        path = fetch(f"{server.url}/a?b=1#c", tmp_path / "a")
        assert server.asked == [("/a?b=1", f"127.0.0.1:{server.server_port}")]
    assert path.read_bytes() == b"x" * 600 + b"y" * 400


def test_the_connection_goes_to_the_address_that_was_checked(tmp_path, monkeypatch):
    with listening({"/": (200, PNG, [b"x"], 0)}) as server:
        once = answers(["127.0.0.1"])  # a second look-up would find nothing
        real = socket.create_connection
        met = []
        monkeypatch.setattr(addresses.socket, "getaddrinfo", once)

        def connect(address, *rest):
            met.append(address)
            monkeypatch.undo()
            return real(address, *rest)

        monkeypatch.setattr(socket, "create_connection", connect)
        fetch(f"http://rebinding.example:{server.server_port}/", tmp_path / "a")
        assert met == [("127.0.0.1", server.server_port)]
        assert server.asked == [("/", f"rebinding.example:{server.server_port}")]


def test_the_next_address_is_called_where_the_first_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(addresses.socket, "getaddrinfo", answers(["127.0.0.2", "127.0.0.1"]))
    with listening({"/": (200, PNG, [b"x"], 0)}) as server:
        url = f"http://two.example:{server.server_port}/"
        assert fetch(url, tmp_path / "a").read_bytes() == b"x"


def test_nothing_local_is_called_unless_it_is_allowed(tmp_path):
    with listening({"/": (200, PNG, [b"x"], 0)}) as server:
        with pytest.raises(UsageError, match="not public"):
            Fetcher(LIMITS).fetch(server.url, tmp_path / "a")
        assert server.asked == []


def moved(to):
    return (302, {"Location": to}, [], 0)


def test_redirects_are_followed_and_each_is_checked(tmp_path):
    pages = {
        "/a": moved("b"),
        "/b": (200, PNG, [b"x"], 0),
        "/to-cloud": moved("http://169.254.169.254/latest"),
        "/to-file": moved("file:///etc/passwd"),
        "/to-mail": moved("http://127.0.0.1:25/"),
        "/round": moved("/round"),
    }
    with listening(pages) as server:
        assert fetch(f"{server.url}/a", tmp_path / "a").read_bytes() == b"x"
        for path, why in (
            ("to-cloud", "not public"),
            ("to-file", "http://"),
            ("to-mail", "port"),
            ("round", "more than 3"),
        ):
            with pytest.raises(UsageError, match=why):
                fetch(f"{server.url}/{path}", tmp_path / path)
            assert not (tmp_path / path).exists()
        assert server.asked.count(("/round", server.asked[0][1])) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ((404, PNG, [], 0), "answers 404"),
        ((206, PNG, [b"x"], 0), "answers 206"),
        ((200, {"Content-Type": "text/html"}, [b"x"], 0), "text/html"),
        ((200, {}, [b"x"], 0), "text/plain"),
        ((200, {**PNG, "Content-Length": "1001"}, [], 0), "over 1,000 bytes"),
        ((200, PNG, [b"x" * 501, b"x" * 500], 0), "over 1,000 bytes"),
        ((200, {**PNG, "Content-Length": "20"}, [b"x" * 10], 0), "before its end"),
        ((200, {**PNG, "Transfer-Encoding": "chunked"}, [b"9\r\nshort"], 0), "cannot be fetched"),
        ((302, {}, [], 0), "answers 302"),
    ],
)
def test_answers_that_are_no_picture_are_refused(tmp_path, page, why):
    with listening({"/": page}) as server, pytest.raises(UsageError, match=why):
        fetch(f"{server.url}/", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("headers", [PNG, {**PNG, "Content-Length": "900"}])
def test_a_host_that_drips_is_left_in_time(tmp_path, headers):
    with listening({"/": (200, headers, [b"x"] * 100, 0.1)}) as server:
        started = time.monotonic()
        with pytest.raises(UsageError, match=r"took over 0\.[45]"):
            fetch(f"{server.url}/", tmp_path / "a", fetch_seconds=0.5)
        assert time.monotonic() - started < 3  # all of it would take 10
        assert server.cut.wait(10)
    assert list(tmp_path.iterdir()) == []


def test_headers_that_drip_are_left_in_time(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection:
                try:
                    for _ in range(100):
                        connection.sendall(b"HTTP/1.1 200 OK\r\n"[:1])
                        time.sleep(0.1)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(UsageError, match="took over"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", tmp_path / "a", fetch_seconds=1)
        assert time.monotonic() - started < 4


def certificate(folder, host):
    """A file of a key and of a certificate that it signed itself, good for a host."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    today, day = datetime.now(timezone.utc), timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - day)
        .not_valid_after(today + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = folder / "certificate.pem"
    file.write_bytes(key.private_bytes(pem, *form) + made.public_bytes(pem))
    return file


def test_with_tls_the_name_is_checked_though_the_address_is_called(tmp_path, monkeypatch):
    file = certificate(tmp_path, "pictures.example")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(file)
    monkeypatch.setattr(addresses.socket, "getaddrinfo", answers(*[["127.0.0.1"]] * 3))
    with listening({"/": (200, PNG, [b"x"], 0)}) as server:
        server.socket = ours.wrap_socket(server.socket, server_side=True)
        port = server.server_port
        with pytest.raises(UsageError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://pictures.example:{port}/", tmp_path / "a")  # signed by nobody known
        trusting = ssl.create_default_context(cafile=str(file))
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
        into = fetch(f"https://pictures.example:{port}/", tmp_path / "a")
        assert into.read_bytes() == b"x"
        assert server.asked == [("/", f"pictures.example:{port}")]
        with pytest.raises(UsageError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://another.example:{port}/", tmp_path / "b")


def test_a_host_that_is_silent_in_the_handshake_is_left_in_time(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(UsageError, match=r"took over 0\.[45]|timed out"):
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
            fetch(url, tmp_path / "a", fetch_seconds=0.5)
        assert time.monotonic() - started < 3


def test_a_host_that_is_not_there_is_an_error_of_the_client(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{port}/"):
        with pytest.raises(UsageError, match="cannot be fetched"):
            fetch(url, tmp_path / "a")


def test_data_urls_are_decoded(tmp_path):
    data = bytes(range(256))
    coded = base64.b64encode(data).decode()
    assert fetch(f"data:image/png;base64,{coded}", tmp_path / "a").read_bytes() == data
    assert fetch("DATA:image/png,%00%01", tmp_path / "b").read_bytes() == b"\x00\x01"
    most = base64.b64encode(b"x" * 1000).decode()
    assert fetch(f"data:image/png;base64,{most}", tmp_path / "c").stat().st_size == 1000


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,????", "not base64"),
        ("data:image/png;base64,AAA", "not base64"),
        ("data:image/png;base64,é", "not base64"),
        ("data:text/html,<b>", "text/html"),
        ("data:,x", "text/plain"),
        ("data:image/svg+xml,<svg/>", "svg"),
        ("data:image/png;base64," + "A" * 1400, "over 1,000"),
        ("data:image/png," + "%00" * 1001, "over 1,000"),
    ],
)
def test_data_urls_that_are_no_picture_are_refused(tmp_path, url, why):
    with pytest.raises(UsageError, match=why):
        fetch(url, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
