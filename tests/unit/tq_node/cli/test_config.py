"""Settings: where values come from, what they become, and what is refused."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tq_node import limits
from tq_node.cli import config, invitation_file
from tq_node.cli.addresses import Address, Listen
from tq_node.cli.config import BIRTH_GUARD_VARIABLE, STORE_FILE, BadOption, NodeSettings, load
from tq_node.cli.option_table import BY_NAME, OPTIONS, OptionRow
from tq_node.direct_sends import DirectReactor
from tq_node.node.process import tcp_reactor
from tq_node.tokens import encode


def tokens_file(folder: Path) -> Path:
    path = folder / "tokens.toml"
    path.write_text(f'[[token]]\nname = "ops"\nhash = "sha256:{"ab" * 32}"\nroles = ["admin"]\n')
    path.chmod(0o600)
    return path


HERE = Path("/somewhere/else")


def loaded(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    here: Path = HERE,
    **options: str | Sequence[str],
) -> NodeSettings:
    """``loaded(data_dir="x")`` is ``--data-dir x``; ``loaded("insecure")`` is ``--insecure``."""
    command_line = {name: ["true"] for name in arguments}
    for name, value in options.items():
        command_line[name.replace("_", "-")] = [value] if isinstance(value, str) else list(value)
    return load(command_line, environment or {}, here)


def refusal(*arguments: str, **options: object) -> str:
    with pytest.raises(BadOption) as caught:
        loaded(*arguments, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("--")
    return line


class TestDefaults:
    def test_everything_has_the_default_of_the_contract(self) -> None:
        settings = loaded()
        assert settings.node_name == "node-1"
        assert settings.http.endpoint == "tcp:8080:interface=127.0.0.1"
        assert settings.http_compatible is None
        assert settings.peer.endpoint == "tcp:9080:interface=127.0.0.1"
        assert settings.join == ()
        assert settings.advertise == "127.0.0.1"
        assert settings.data_dir == HERE / "data" / "node-1"
        assert settings.pid_file == HERE / "data" / "node-1" / "twistd.pid"
        assert settings.handlers == ()
        assert (settings.concurrency, settings.replication_factor, settings.partitions) == (16, 3, 64)
        assert settings.voters == 3
        assert settings.retention_ms == settings.dedupe_window_ms == 86_400_000
        assert settings.stop_timeout_ms == 25_000
        assert settings.body_bytes_max == 16 * 2**20
        assert settings.payload_bytes_max == 2**20
        assert settings.disk_free_bytes_min == 256 * 2**20
        assert (settings.insecure_http, settings.insecure_peers) == (False, False)
        assert str(settings.http_public) == "127.0.0.1:8080"
        assert settings.peer_public == "127.0.0.1:9080"
        assert settings.birth_guard_s is None

    def test_defaults_agree_with_the_limits(self) -> None:
        settings = loaded()
        assert settings.retention_ms == limits.RETENTION_S * 1_000
        assert settings.dedupe_window_ms == limits.DEDUPE_WINDOW_S * 1_000
        assert settings.body_bytes_max == limits.BODY_BYTES_MAX
        assert settings.payload_bytes_max == limits.PAYLOAD_BYTES_MAX
        assert settings.disk_free_bytes_min == limits.MIN_FREE_DISK_BYTES

    def test_every_option_has_a_variable_of_its_own(self) -> None:
        variables = [variable for option in OPTIONS for variable in option.environment]
        assert len(variables) == len(set(variables))
        assert {"TQ_NODE_ID", "NODE_ID", "TQ_HTTP", "HTTP_ADDR", "TQ_JOIN", "JOIN_ADDR", "TQ_PEER_CA"} <= set(variables)

    def test_settings_do_not_change(self) -> None:
        with pytest.raises(AttributeError):
            loaded().concurrency = 3  # type: ignore[misc]


class TestPrecedence:
    def test_command_line_over_environment_over_file_over_default(self, tmp_path: Path) -> None:
        config = tmp_path / "node.toml"
        config.write_text('concurrency = 5\nvoters = 5\npartitions = 128\nnode-id = "from-file"\n')
        settings = loaded(
            config=str(config),
            concurrency="7",
            environment={"TQ_CONCURRENCY": "6", "TQ_VOTERS": "1", "TQ_CONFIG": "/not/there"},
        )
        assert settings.concurrency == 7
        assert settings.voters == 1
        assert settings.partitions == 128
        assert settings.node_name == "from-file"
        assert settings.replication_factor == 3

    def test_our_variable_goes_before_that_of_the_original_example(self) -> None:
        assert loaded(environment={"TQ_NODE_ID": "ours", "NODE_ID": "theirs"}).node_name == "ours"
        assert loaded(environment={"NODE_ID": "theirs"}).node_name == "theirs"

    def test_an_empty_variable_is_not_set(self) -> None:
        settings = loaded(
            environment={"TQ_NODE_ID": "", "NODE_ID": "b", "TQ_CONFIG": "", "HTTP_ADDR": "", "TQ_JOIN": ""}
        )
        assert settings.node_name == "b"
        assert settings.http.port == 8080
        assert settings.http_compatible is None

    def test_the_last_of_several_values_counts(self) -> None:
        assert loaded(concurrency=["3", "4"]).concurrency == 4

    def test_config_from_the_environment(self, tmp_path: Path) -> None:
        config = tmp_path / "node.toml"
        config.write_text('concurrency = 5\nhandlers = ["a.b", "c"]\nretention = "1h"\ninsecure = true\nhttp = 8090\n')
        settings = loaded(environment={"TQ_CONFIG": str(config)})
        assert settings.concurrency == 5
        assert settings.handlers == ("a.b", "c")
        assert settings.retention_ms == 3_600_000
        assert (settings.insecure_http, settings.insecure_peers) == (True, True)
        assert settings.http.port == 8090

    @pytest.mark.parametrize(
        ("said", "meant"), [("1", True), ("true", True), ("Yes", True), ("0", False), ("off", False)]
    )
    def test_flags_in_the_environment(self, said: str, meant: bool) -> None:
        assert loaded(environment={"TQ_INSECURE": said}).insecure_http is meant


class TestRefusals:
    def test_names_the_option(self) -> None:
        assert refusal(concurrency="many") == "--concurrency: 'many' is not a whole number from 0 to 4096"

    def test_names_the_variable(self) -> None:
        assert refusal(environment={"HTTP_ADDR": "port"}).startswith("--http (HTTP_ADDR): 'port' is none of PORT, ")

    def test_names_the_file(self, tmp_path: Path) -> None:
        config = tmp_path / "node.toml"
        config.write_text("voters = 4")
        assert refusal(config=str(config)) == f"--voters ({config}): '4' is not 1, 3 or 5"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("node_id = 'a'", "unknown key 'node_id'; did you mean 'node-id'?"),
            ("colour = 'red'", "unknown key 'colour'"),
            ("config = 'other.toml'", "unknown key 'config'"),
            ("[http]\nport = 80", "wants a string or a number, not dict"),
            ("concurrency = [1]", "wants a string or a number, not list"),
            ("insecure = []", "wants a flag: true or false, not list"),
            ("concurrency = ", "is not a TOML file"),
        ],
    )
    def test_a_file_that_does_not_fit(self, tmp_path: Path, text: str, reason: str) -> None:
        config = tmp_path / "node.toml"
        config.write_text(text)
        line = refusal(config=str(config))
        assert reason in line
        assert str(config) in line

    def test_a_file_that_is_not_there_or_not_text(self, tmp_path: Path) -> None:
        assert "No such file" in refusal(config=str(tmp_path / "none.toml"))
        assert "--config (TQ_CONFIG)" in refusal(environment={"TQ_CONFIG": str(tmp_path / "none.toml")})
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        assert "is not a TOML file" in refusal(config=str(tmp_path / "binary"))
        assert "is not a TOML file" in refusal(config="a\0b")
        assert "is not a TOML file" in refusal(config="~nobody-of-this-name/x")
        assert "home directory" in refusal(data_dir="~nobody-of-this-name/x")

    @pytest.mark.parametrize(
        "options",
        [
            {"node_id": "-a"},
            {"node_id": "a/b"},
            {"node_id": "a" * 64},
            {"node_id": "ä"},
            {"node_id": "a\n"},
            {"node_id": ""},
            {"concurrency": "4097"},
            {"concurrency": "-1"},
            {"concurrency": "1_0"},
            {"concurrency": "²"},
            {"partitions": "0"},
            {"partitions": "1025"},
            {"replication_factor": "0"},
            {"voters": "2"},
            {"handlers": "a..b"},
            {"handlers": "a b"},
            {"handlers": "os;x"},
            {"retention": "soon"},
            {"retention": "24 h"},
            {"retention": "0"},
            {"retention": "99999999h"},
            {"stop_timeout": "-1"},
            {"dedupe_window": "1h-2m"},
            {"max_body": "16 XiB"},
            {"max_body": "0"},
            {"max_body": "1TiB"},
            {"min_free_disk": "1MiB"},
            {"http": "0"},
            {"http": "65536"},
            {"http": "localhost:"},
            {"http": "a b:80"},
            {"http": "1.2.3:80"},
            {"http": "::1:80"},
            {"http": "[::g]:80"},
            {"http": "tcp:http"},
            {"http": "ssl:80:privateKey=/not/there.pem"},
            {"http": "unix"},
            {"peer": "8080"},
            {"peer": "x"},
            {"advertise": "0.0.0.0"},
            {"advertise": "a host"},
            {"join": "localhost:x"},
            {"secret_file": "/not/there"},
            {"peer_ca": "/not/there"},
            {"data_dir": "a\0b"},
            {"data_dir": "/dev/null/x"},
        ],
    )
    def test_values_that_do_not_fit(self, options: dict[str, str]) -> None:
        (name,) = options
        assert refusal(**options).startswith(f"--{name.replace('_', '-')}")

    @given(st.text(max_size=200))
    @example("\0")
    @example("~x")
    def test_any_text_gives_a_setting_or_one_line(self, text: str) -> None:
        for option in OPTIONS:
            line = ""
            try:
                load({option.name: [text]}, {}, HERE)
            except BadOption as why:
                line = str(why)
            assert line == "" or (len(line.splitlines()) == 1 and line.startswith("--"))

    def test_a_long_value_is_cut(self) -> None:
        assert len(refusal(node_id="x" * 10_000)) < 300

    def test_a_payload_over_what_an_entry_holds(self) -> None:
        assert "more than an entry of the log holds" in refusal(max_payload="1025KiB")
        assert loaded(max_payload="1MiB").payload_bytes_max == limits.PAYLOAD_BYTES_MAX

    def test_a_payload_over_the_body(self) -> None:
        assert "do not fit into a body" in refusal(max_body="10kB", max_payload="11kB")
        assert loaded(max_body="10kB").payload_bytes_max == 10_000

    def test_a_data_directory_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "is not a directory" in refusal(data_dir=str(tmp_path / "file"))
        assert "is not a directory" in refusal(data_dir=str(tmp_path / "file" / "below"))

    def test_a_tokens_file_that_can_not_be_used(self, tmp_path: Path) -> None:
        assert refusal(tokens_file="/some/file").startswith(
            "--tokens-file: '/some/file' is not a file that can be read"
        )
        path = tokens_file(tmp_path)
        path.chmod(0o644)
        assert refusal(tokens_file=str(path)).startswith(f"--tokens-file: {path}: its mode is 0644")
        path.chmod(0o600)
        path.write_text("token = 1")
        assert refusal(tokens_file=str(path)).startswith(f"--tokens-file: {path}: ")

    def test_tokens_without_one_to_make_the_first_with(self, tmp_path: Path) -> None:
        assert refusal("tokens", data_dir=str(tmp_path / "new")).startswith("--tokens: needs --join or --tokens-file")
        assert loaded("tokens", join="127.0.0.1:8081").trusts_tokens
        assert loaded("tokens", tokens_file=str(tokens_file(tmp_path))).trusts_tokens
        (tmp_path / config.STORE_FILE).touch()
        assert loaded("tokens", data_dir=str(tmp_path)).trusts_tokens, "its table may have some"

    def test_a_store_is_set_aside_only_where_others_have_its_tasks(self) -> None:
        assert refusal("readmit").startswith("--readmit: needs --join")
        assert refusal(environment={"TQ_READMIT": "true"}).startswith("--readmit (TQ_READMIT): ")
        assert loaded("readmit", join="localhost:8081").readmit
        assert not loaded(join="localhost:8081").readmit

    def test_certificate_files_go_together(self, tmp_path: Path) -> None:
        file = tmp_path / "file.pem"
        file.touch()
        assert refusal(peer_cert=str(file), peer_ca=str(file)).startswith("--peer-key: is missing")
        assert loaded(peer_cert=str(file), peer_ca=str(file), peer_key=str(file)).peer_key == file


class TestJoin:
    @pytest.mark.parametrize("is_empty", [True, False])
    def test_the_same_list_does_for_an_empty_directory_and_for_one_with_a_store(
        self, tmp_path: Path, is_empty: bool
    ) -> None:
        if not is_empty:
            data = tmp_path / "data" / "node-1"
            data.mkdir(parents=True)
            (data / STORE_FILE).touch()
        settings = loaded(join=["localhost:8081,8082", "[::1]:80", "8082"], here=tmp_path)
        assert settings.join == (Address("localhost", 8081), Address("127.0.0.1", 8082), Address("::1", 80))

    @pytest.mark.parametrize(
        ("said", "addresses"),
        [
            ("localhost:8080", ["localhost:8080"]),
            (":8080", ["127.0.0.1:8080"]),
            ("8080", ["127.0.0.1:8080"]),
            (":8080, :8081,node-3.example.org:80", ["127.0.0.1:8080", "127.0.0.1:8081", "node-3.example.org:80"]),
        ],
    )
    def test_the_original_variable_may_be_a_list(self, said: str, addresses: list[str]) -> None:
        settings = loaded(environment={"HTTP_ADDR": ":8090", "JOIN_ADDR": said})
        assert list(map(str, settings.join)) == addresses
        assert settings.http.port == 8090

    def test_the_node_itself_may_be_among_them(self) -> None:
        settings = loaded(join=["localhost:8080", "localhost:8081"], http="8080")
        assert settings.http_own == ("127.0.0.1:8080",)
        assert len(settings.join) == 2

    def test_it_knows_itself_by_several_names(self) -> None:
        settings = loaded(
            "insecure", environment={"HTTP_ADDR": "0.0.0.0:8080"}, peer="9000", advertise="me.example.org"
        )
        assert settings.http_own == ("me.example.org:8080", "127.0.0.1:8080", "127.0.0.1:10080")


class TestAddresses:
    @pytest.mark.parametrize(
        ("said", "endpoint", "host", "port"),
        [
            ("8090", "tcp:8090:interface=127.0.0.1", "127.0.0.1", 8090),
            (":8090", "tcp:8090:interface=127.0.0.1", "127.0.0.1", 8090),
            ("localhost:8090", "tcp:8090:interface=127.0.0.1", "localhost", 8090),
            ("127.0.0.2:8090", "tcp:8090:interface=127.0.0.2", "127.0.0.2", 8090),
            ("[::1]:8090", "tcp6:8090:interface=\\:\\:1", "::1", 8090),
            ("tcp:8090:interface=127.0.0.1", "tcp:8090:interface=127.0.0.1", "127.0.0.1", 8090),
            ("tcp:port=8090:interface=127.0.0.1", "tcp:port=8090:interface=127.0.0.1", "127.0.0.1", 8090),
            ("tcp:8090:127.0.0.1", "tcp:8090:127.0.0.1", "127.0.0.1", 8090),
            ("tcp6:8090:interface=\\:\\:1", "tcp6:8090:interface=\\:\\:1", "::1", 8090),
        ],
    )
    def test_forms(self, said: str, endpoint: str, host: str, port: int) -> None:
        http = loaded(http=said).http
        assert (http.endpoint, http.host, http.port) == (endpoint, host, port)
        assert http.is_local
        assert not http.is_wildcard

    def test_the_original_variable_adds_a_second_address(self) -> None:
        settings = loaded(environment={"HTTP_ADDR": ":8080"})
        assert settings.http.port == 8080
        assert settings.http_compatible is not None
        assert settings.http_compatible.endpoint == "tcp:10080:interface=127.0.0.1"
        assert settings.peer.port == 9080

    def test_and_only_that_variable_does(self) -> None:
        assert loaded(http="8080", environment={"HTTP_ADDR": "8081"}).http_compatible is None
        assert loaded(environment={"TQ_HTTP": "8080", "HTTP_ADDR": "8081"}).http_compatible is None

    def test_ports_that_meet(self) -> None:
        assert "port 9000 is already that of --http" in refusal(http="9000", peer="localhost:9000")
        assert "port 10080 is already that of --peer" in refusal(environment={"HTTP_ADDR": "8080"}, peer="10080")
        assert loaded(http="127.0.0.1:9000", peer="127.0.0.2:9000").peer.host == "127.0.0.2"

    def test_ports_past_the_end(self) -> None:
        assert refusal(http="65000").startswith("--peer: the HTTP port + 1000: '66000' is not a port")
        assert loaded(http="65000", peer="9000").peer.port == 9000
        assert "the HTTP port + 2000" in refusal(environment={"HTTP_ADDR": "64000"})

    @pytest.mark.parametrize("address", ["10.0.0.1:8080", "0.0.0.0:8080", "[::]:8080", "example.org:8080", "tcp:8080"])
    def test_what_is_not_loopback_needs_insecure(self, address: str) -> None:
        assert "is not loopback" in refusal(http=address)
        assert "--insecure" in refusal(http=address)
        assert refusal(peer=address).startswith("--peer: ")
        assert "--insecure-http" in refusal("insecure-peers", http=address, peer=address.replace("8080", "9000"))
        with_certificates = "neither --secret-file nor --peer-cert"
        assert with_certificates in refusal(
            "insecure-http", http=address, peer="10.0.0.1:9000", advertise="a.example.org"
        )
        settings = loaded("insecure-http", http=address, peer="9000", advertise="host.example.org")
        assert str(settings.http_public) == "host.example.org:8080"
        assert settings.peer_public == "host.example.org:9000"

    def test_what_is_missing_is_said(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.touch()
        neither = "the peers have neither --secret-file nor --peer-cert, --peer-key and --peer-ca"
        assert "asks for no access tokens" in refusal(http="10.0.0.1:8080")
        assert neither in refusal(http="10.0.0.1:8080")
        assert neither not in refusal(http="10.0.0.1:8080", secret_file=str(file))
        assert neither in refusal(peer="10.0.0.1:9080")
        assert "tokens" not in refusal(peer="10.0.0.1:9080")

    @pytest.mark.parametrize("ask", ["tokens_file", "tokens"])
    def test_tokens_go_where_somebody_may_listen_only_by_tls(self, ask: str, tmp_path: Path) -> None:
        given: dict[str, Any] = {
            "secret_file": str(tokens_file(tmp_path)),
            "http": "10.0.0.1:8080",
            "join": "10.0.0.2:8080",
        }
        flags = ["tokens"] if ask == "tokens" else []
        if ask == "tokens_file":
            given["tokens_file"] = str(tokens_file(tmp_path))
        assert "tokens would go there in plain text" in refusal(*flags, **given)
        assert loaded("insecure-http", *flags, **given).asks_for_tokens
        assert loaded(*flags, **given | {"http": "127.0.0.1:8080"}).asks_for_tokens

    def test_a_node_that_asks_for_tokens_is_not_one_to_try_things_out(self, tmp_path: Path) -> None:
        assert loaded().is_for_this_machine
        assert not loaded(tokens_file=str(tokens_file(tmp_path))).is_for_this_machine
        assert not loaded("tokens", join="127.0.0.1:8081").is_for_this_machine

    def test_peers_with_a_secret_or_certificates_may_be_anywhere(self, tmp_path: Path) -> None:
        file = str(tmp_path / "file")
        Path(file).touch()
        assert loaded(peer="10.0.0.1:9080", secret_file=file).peer.host == "10.0.0.1"
        assert loaded(peer="10.0.0.1:9080", peer_cert=file, peer_key=file, peer_ca=file).peer.host == "10.0.0.1"
        assert refusal(http="10.0.0.1:8080", secret_file=file).startswith("--http: 10.0.0.1 is not loopback")

    def test_an_invitation_says_whom_to_ask(self, tmp_path: Path) -> None:
        file = tmp_path / "invitation"

        def put(content: str, mode: int = 0o600) -> dict[str, Any]:
            file.write_text(content)
            file.chmod(mode)
            return {"invitation": str(file)}

        good = invitation_file.text_of(
            encode(bytes(32)), ["https://node-1:8080", "localhost:8081"], "2030-01-01T00:00:00Z"
        )
        settings = loaded(**put(good))
        assert settings.invitation == file
        assert [str(address) for address in settings.join] == ["https://node-1:8080", "localhost:8081"]
        assert [str(address) for address in loaded(join="localhost:1", **put(good)).join] == ["localhost:1"]
        for content, mode, why in (
            (good, 0o644, "chmod 600"),
            ("", 0o600, "no invitation"),
            (good.replace("tq_0", "tq_1"), 0o600, "its letters"),
            (good.replace('"https://node-1:8080", "localhost:8081"', ""), 0o600, "names nobody"),
            (good.replace("https://", ""), 0o600, "node-1:8080 in plain text"),
        ):
            assert refusal(**put(content, mode)).startswith("--invitation: ")
            assert why in refusal(**put(content, mode))
        assert loaded("insecure-http", **put(good.replace("https://", ""))).join
        file.unlink()
        assert "No such file" in refusal(invitation=str(file))
        assert loaded(join="localhost:1", invitation=str(file)).join, "it has joined; the file was for that"

    def test_a_list_of_revoked_certificates_goes_with_an_authority(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.touch()
        given: dict[str, Any] = dict.fromkeys(("peer_cert", "peer_key", "peer_ca"), str(file))
        assert loaded(peer_crl=str(file), **given).peer_crl == file
        assert loaded(**given).peer_crl is None
        assert refusal(peer_crl=str(file)).startswith("--peer-crl: goes with --peer-cert")
        assert refusal(peer_crl=str(tmp_path / "gone"), **given).startswith("--peer-crl: ")

    def test_peers_may_meet_at_a_socket_in_the_file_system(self) -> None:
        settings = loaded(peer="unix:run/peers\\:1")
        assert settings.peer.endpoint == "unix:run/peers\\:1"
        assert settings.peer_public == f"unix:{HERE}/run/peers\\:1"
        assert loaded(peer="unix:address=/run/a:mode=600").peer_public == "unix:/run/a"

    @pytest.mark.parametrize(
        ("endpoint", "why"), [("systemd:domain=INET:index=0", "says no port"), ("ssl:9443", "--peer-cert, --peer-key")]
    )
    def test_endpoints_that_peers_could_not_dial(
        self, endpoint: str, why: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To parse one of them, Twisted wants a service manager; the other, a certificate."""
        parse = config.parse_listen  # type: ignore[attr-defined]
        monkeypatch.setattr(
            config, "parse_listen", lambda text: Listen(text, "127.0.0.1", None) if text == endpoint else parse(text)
        )
        assert refusal(peer=endpoint).startswith("--peer: ")
        assert why in refusal(peer=endpoint)

    def test_a_wildcard_needs_peer_and_advertise(self) -> None:
        assert refusal("insecure", http="0.0.0.0:8080").startswith("--peer: is missing")
        assert refusal("insecure", http="0.0.0.0:8080", advertise="a").startswith("--peer: is missing")
        assert refusal("insecure", http="0.0.0.0:8080", peer="9000").startswith("--advertise: is missing")

    def test_an_endpoint_without_a_port_needs_peer_and_advertise(self, tmp_path: Path) -> None:
        endpoint = f"unix:{tmp_path}/http.sock"
        assert refusal(http=endpoint).startswith("--peer: is missing")
        assert refusal(http=endpoint, peer="9000").startswith("--advertise: is missing")
        settings = loaded(http=endpoint, peer="9000", advertise="localhost:8000")
        assert settings.http.endpoint == endpoint
        assert str(settings.http_public) == "localhost:8000"
        line = refusal(http=endpoint, peer="9000", advertise="localhost")
        assert line.startswith("--advertise: 'localhost' says no port"), (
            "nobody could dial what the node would tell of itself"
        )
        assert "HOST:PORT" in line

    def test_ipv6_is_shown_in_brackets(self) -> None:
        assert str(loaded(http="[::1]:8080").http_public) == "[::1]:8080"


class TestCopyRate:
    @pytest.mark.parametrize(("said", "bytes_s"), [("0", 0), ("64KiB", 65_536), ("10MB", 10_000_000), ("0B", 0)])
    def test_bytes_a_second_or_none(self, said: str, bytes_s: int) -> None:
        assert loaded(copy_rate=said).copy_rate_bytes_s == bytes_s

    @pytest.mark.parametrize("said", ["1", "65535", "-1", "fast", "2TiB"])
    def test_one_at_which_nothing_would_end_is_refused(self, said: str) -> None:
        line = refusal(copy_rate=said)
        assert line.startswith("--copy-rate: ")
        assert "nor 0 for no bound" in line

    def test_there_is_none_unless_asked_for(self) -> None:
        assert loaded().copy_rate_bytes_s == limits.COPY_RATE_BYTES_S == 0


class TestWorkers:
    def test_memory(self) -> None:
        assert loaded().worker_memory_bytes is None
        assert loaded(worker_memory="512MiB").worker_memory_bytes == 512 * limits.MIB
        assert refusal(worker_memory="1MiB").startswith("--worker-memory: ")

    def test_variables(self) -> None:
        assert loaded().worker_env == ()
        assert loaded(worker_env="API_KEY,AWS_*").worker_env == ("API_KEY", "AWS_*")
        for own in ("TQ_SECRET_FILE", "NOTIFY_SOCKET", "TQ_*"):
            assert "the node's own" in refusal(worker_env=own)
        assert "is not the name of a variable" in refusal(worker_env="A=B")

    def test_echo(self) -> None:
        assert loaded().echo_handlers is False
        assert loaded(echo_handlers="true").echo_handlers is True

    def test_connections_send_directly_unless_said_otherwise(self) -> None:
        reactor = object()
        assert isinstance(tcp_reactor(reactor, loaded()), DirectReactor)
        assert tcp_reactor(reactor, loaded(buffered_sends="true")) is reactor


class TestValues:
    @pytest.mark.parametrize(
        ("said", "ms"),
        [
            ("24h", 86_400_000),
            ("25", 25_000),
            ("1.5", 1_500),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1500ms", 1_500),
        ],
    )
    def test_times(self, said: str, ms: int) -> None:
        assert loaded(retention=said).retention_ms == ms

    @pytest.mark.parametrize(
        ("said", "count"),
        [("16MiB", 2**24), ("1mib", 2**20), ("500kB", 500_000), ("65536", 2**16), ("1.5 MiB", 3 * 2**19)],
    )
    def test_sizes(self, said: str, count: int) -> None:
        assert loaded(max_body=said).body_bytes_max == count

    def test_handlers_from_commas_and_repeats(self) -> None:
        assert loaded(handlers=["a.b, c", "d"]).handlers == ("a.b", "c", "d")

    def test_paths_are_absolute_and_do_not_move_with_the_daemon(self) -> None:
        settings = loaded(data_dir="x/../y", node_id="n")
        assert settings.data_dir == HERE / "y"
        assert settings.working_dir == HERE
        assert loaded(data_dir="/abs").data_dir == Path("/abs")
        assert loaded(data_dir="~/x").data_dir == Path.home() / "x"

    @given(st.text(string.ascii_letters + string.digits, min_size=1, max_size=63))
    def test_node_names(self, name: str) -> None:
        assert loaded(node_id=name).node_name == name


class TestBirthGuard:
    def test_tests_may_shorten_it_and_nobody_else_hears_of_it(self) -> None:
        assert loaded().birth_guard_s is None
        assert loaded(environment={BIRTH_GUARD_VARIABLE: "0"}).birth_guard_s == 0
        assert loaded(environment={BIRTH_GUARD_VARIABLE: "0.25"}).birth_guard_s == 0.25
        assert all(BIRTH_GUARD_VARIABLE not in option.environment for option in OPTIONS)

    @pytest.mark.parametrize("text", ["x", "-1", "1h"])
    def test_what_is_no_time_is_one_line_too(self, text: str) -> None:
        with pytest.raises(BadOption, match=f"^{BIRTH_GUARD_VARIABLE}: "):
            loaded(environment={BIRTH_GUARD_VARIABLE: text})


class TestNastyValues:
    """Whatever an option is given, by whichever way: settings, or one line that names it."""

    NASTY = (
        "1" * 400,
        "9" * 5_000,
        "0." + "9" * 5_000,
        "1" * 400 + "h",
        "1e999",
        "inf",
        "nan",
        "-1",
        "١٢",
        "9" * 25 + "w",
        "1" * 400 + "GiB",
        "x" * 3_000,
        "/" + "x" * 3_000,
        "x/" * 3_000,
        "~" * 300,
        "~" + "x" * 3_000,
        "~nobody-of-this-name/x",
        "a\0b",
        "\udcff",
        "\n",
        " ",
        ".",
        "..",
        "/dev/null",
        "/dev/null/x",
        "/proc/self/mem",
        "unix:" + "x" * 3_000,
        "tcp:" + "9" * 5_000,
        "tcp:1:interface=" + "x" * 3_000,
        "ssl:1",
        "systemd:",
        "systemd:domain=INET:index=99999999999",
        "[" * 400,
        "[::1]:" + "1" * 400,
        ":" * 50,
        "localhost:" + "0" * 400 + "1",
        "%s%n{0}{x}",
    )
    nasty = st.sampled_from(NASTY) | st.text(max_size=40) | st.from_regex(r"[0-9.]{1,400}[a-zA-Z]{0,3}", fullmatch=True)

    @staticmethod
    def assert_taken_or_one_line(
        command_line: Mapping[str, Sequence[str]], environment: Mapping[str, str], name: str
    ) -> None:
        try:
            load(command_line, environment, HERE)
        except BadOption as why:
            line = str(why)
            assert len(line.splitlines()) == 1
            assert len(line) <= 700
            assert "--" in line
        else:
            assert not (HERE / "data").exists(), name

    @pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
    def test_each_option_with_each_of_them(self, option: OptionRow) -> None:
        for text in self.NASTY:
            self.assert_taken_or_one_line({option.name: [text]}, {}, option.name)
            self.assert_taken_or_one_line({}, {option.environment[-1]: text}, option.name)

    @given(st.sampled_from(OPTIONS), nasty, st.sampled_from(OPTIONS), nasty)
    @example(BY_NAME["retention"], "1" * 400, BY_NAME["max-body"], "1" * 400)
    def test_two_at_once(self, one: OptionRow, text: str, two: OptionRow, other: str) -> None:
        self.assert_taken_or_one_line({one.name: [text]}, {two.environment[0]: other}, one.name)

    @pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
    def test_in_a_file(self, option: OptionRow, tmp_path: Path) -> None:
        path = tmp_path / "node.toml"
        for value in (
            *(json.dumps(text) for text in self.NASTY if text.isprintable()),
            "1" * 5_000,
            "-1",
            "1e400",
            "nan",
            "[" * 5_000,
            "{}",
            "[[1]]",
            "2026-01-01",
            '[""]',
        ):
            path.write_text(f"{option.name} = {value}\n")
            self.assert_taken_or_one_line({"config": [str(path)]}, {}, option.name)

    def test_a_file_without_an_end(self) -> None:
        assert "not a file of options" in refusal(config="/dev/zero")


def test_the_reference_page_has_every_option_in_order() -> None:
    page = (Path(__file__).parents[4] / "docs/reference/options.md").read_text()
    rows = re.findall(r"^\| `--([a-z-]+)(?: ([A-Z]+))?` \| (.*?) \| (.*?) \|", page, re.MULTILINE)
    assert [name for name, *_ in rows] == [option.name for option in OPTIONS]
    for (_, metavar, variables, default), option in zip(rows, OPTIONS, strict=True):
        assert metavar == option.metavar
        assert variables == ", ".join(f"`{variable}`" for variable in option.environment)
        assert option.default is None or default == f"`{option.default}`"


class TestHttps:
    @pytest.fixture
    def file(self, tmp_path: Path) -> str:
        made = tmp_path / "file.pem"
        made.write_text("not looked into here")
        return str(made)

    def test_the_files_go_together(self, file: str) -> None:
        assert not loaded().http_tls
        settings = loaded(http_cert=file, http_key=file)
        assert settings.http_tls
        assert settings.http_registered == settings.http_url == "https://127.0.0.1:8080"
        assert loaded().http_registered == "127.0.0.1:8080"
        assert "--http-key: is missing" in refusal(http_cert=file)
        assert "--http-cert: is missing" in refusal(http_key=file)
        assert "--http-cert: is missing" in refusal(http_client_ca=file)

    def test_an_endpoint_with_tls_of_its_own_takes_none(self, file: str) -> None:
        endpoint = f"ssl:8443:privateKey={file}:certKey={file}:interface=127.0.0.1"
        with mock.patch("tq_node.cli.addresses.serverFromString"):
            assert loaded(http=endpoint).http_tls
            assert "'ssl:' does HTTPS of its own" in refusal(http=endpoint, http_cert=file, http_key=file)

    def test_members_by_https(self) -> None:
        settings = loaded(join="https://one.example.org:8080,http://two:8081,:8082")
        assert [str(address) for address in settings.join] == [
            "https://one.example.org:8080", "two:8081", "127.0.0.1:8082",
        ]  # fmt: skip
        assert "is neither https:// nor http://" in refusal(join="ftp://one:1")

    def test_tokens_may_go_beyond_loopback_by_it(self, file: str, tmp_path: Path) -> None:
        open_to_all: dict[str, object] = {
            "http": "192.0.2.1:8080", "tokens_file": str(tokens_file(tmp_path)), "secret_file": file,
        }  # fmt: skip
        assert "in plain text" in refusal(**open_to_all)
        assert loaded(**open_to_all, http_cert=file, http_key=file).http_tls  # type: ignore[arg-type]
