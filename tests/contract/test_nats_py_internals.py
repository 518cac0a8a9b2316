"""What `mesh/jetstream/link.py` relies on inside nats-py. When an upgrade changes it, this fails first, by name."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import nats.aio.client as nats_client
import pytest
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from mesh.jetstream.link import Link


def _source(function: Callable[..., Any]) -> str:
    return textwrap.dedent(inspect.getsource(function))


def _calls(function: Callable[..., Any]) -> set[str]:
    """Every attribute that *function* calls, by its last name."""
    nodes = ast.walk(ast.parse(_source(function)))
    return {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}


def test_the_version_is_the_one_that_was_read() -> None:
    """2.16.0: another version has to be read again, and this file with it."""
    assert importlib.metadata.version("nats-py") == "2.16.0"


def test_the_optional_header_parser_is_not_installed() -> None:
    """With fast-mail-parser, nats-py decodes header values and splits them at bare LFs."""
    assert vars(nats_client)["parse_email"] is None


@pytest.mark.parametrize(
    "name",
    [
        "_close",
        "_connect_to_server",
        "_process_err",
        "_process_info",
        "_process_op_err",
        "_process_pong",
        "_read_loop",
        "_ping_interval",
    ],
)
def test_the_methods_we_override_or_call_are_coroutines(name: str) -> None:
    """They exist and are awaited."""
    assert inspect.iscoroutinefunction(getattr(Client, name))


@pytest.mark.parametrize(
    ("attribute", "initial"),
    [
        ("_transport", None),
        ("_pending", []),
        ("_pending_data_size", 0),
        ("_pongs", []),
        ("_pings_outstanding", 0),
        ("_err", None),
        ("_reading_task", None),
        ("_ping_interval_task", None),
        ("_flusher_task", None),
        ("_server_info", {}),
    ],
)
def test_the_attributes_we_use_exist(attribute: str, initial: object) -> None:
    """With these initial values."""
    assert getattr(Client(), attribute) == initial


def test_the_handshake_starts_our_read_loop() -> None:
    """`_process_connect_init` makes the reading task from `self._read_loop`, so that our override runs."""
    assert {"_read_loop", "_ping_interval", "_flusher"} <= _calls(Client._process_connect_init)
    assert "self._reading_task = " in _source(Client._process_connect_init)
    assert Link._read_loop is not Client._read_loop


def test_an_error_without_reconnecting_closes() -> None:
    """With `allow_reconnect=False` every operational error ends in `_close`, where our override hears of it."""
    source = _source(Client._process_op_err)
    assert 'self.options["allow_reconnect"]' in source
    assert "await self._close(Client.CLOSED, True)" in source
    assert "_close" in _calls(Client._process_err)
    assert "_process_op_err" in _calls(Client._ping_interval)


def test_a_failed_connect_is_raised_without_reconnecting() -> None:
    """`connect` does not loop for ever, so that the pauses between attempts are ours."""
    assert 'if not self.options["allow_reconnect"]:\n                    raise e' in inspect.getsource(Client.connect)
    source = inspect.getsource(Client._select_next_server)
    assert 'self.options["max_reconnect_attempts"] > 0' in source
    assert "raise errors.NoServersError" in source


def test_pings_wait_in_the_list_we_share() -> None:
    """Our pings and nats-py's are answered in one order: both append to `_pongs` before they write."""
    source = _source(Client._send_ping)
    assert "self._pongs.append(future)" in source
    assert "self._transport.write(PING_PROTO)" in source
    assert nats_client.PING_PROTO == b"PING\r\n"
    assert nats_client.PONG_PROTO == b"PONG\r\n"


def test_the_transport_is_a_stream_writer() -> None:
    """`_io_writer.transport` can be aborted and asked how much it holds."""
    assert "self._io_writer" in inspect.getsource(TcpTransport)
    assert {"write", "read", "drain", "wait_closed"} <= set(dir(TcpTransport))
    assert "self._io_writer.write(payload)" in _source(TcpTransport.write)


def test_permission_errors_reach_our_callback_and_do_not_close() -> None:
    """A refused subject is reported through `error_cb`; the connection stays."""
    source = _source(Client._process_err)
    assert "if PERMISSIONS_ERR in m:\n            await self._error_cb(err)\n            return" in source


def test_credentials_come_from_callbacks() -> None:
    """`signature_cb` and `user_jwt_cb` are used as given: no path, no file."""
    source = _source(Client._connect_command)
    assert 'self._signature_cb(self._server_info["nonce"])' in source
    assert "self._user_jwt_cb()" in source


def test_a_tls_transport_of_ours_is_used_as_it_is() -> None:
    """One dial is one `_connect_to_server`; with `tls_handshake_first` TLS is asked for once more, before INFO is read.

    So ours has shaken hands by then, and the second request does nothing.
    """
    assert "await self._connect_to_server(s)" in _source(Client._select_next_server)
    source = _source(Client._process_connect_init)
    first = source.index("if handshake_first:\n        await self._transport.connect_tls(")
    assert first < source.index("self._transport.readline()")
    assert source.index("if not handshake_first:") > first
    assert 'self.options["tls"] = tls' in inspect.getsource(Client.connect)
    assert {"_io_reader", "_io_writer"} <= vars(TcpTransport()).keys()  # type: ignore[no-untyped-call]
