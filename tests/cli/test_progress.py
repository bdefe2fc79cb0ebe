"""Bars of bytes: on a terminal, for what takes a while, and nowhere else."""

import io
import re

import pytest
from rich.console import Console

import bridge.cli.progress as progress
from bridge.cli.progress import bytes_done, counted, total_of, working
from bridge.weights.sources import open_source


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """What is written to a terminal; bars begin at once."""
    written = Terminal()
    monkeypatch.setattr(progress, "AFTER", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        progress, "Console", lambda **options: Console(file=written, width=100, force_terminal=True)
    )
    return written


def converted(quiet=False):
    source = open_source("net.safetensors")
    with bytes_done("converting \x1b[2J", total_of(source), quiet) as advance:
        for tensor in counted(source, advance).tensors.values():
            tensor.read()


def test_bytes_are_counted_on_a_terminal(folder, terminal):
    converted()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())
    assert "converting \\x1b[2J" in text
    assert "320/320 bytes" in text


def test_nothing_is_shown_for_what_is_done_soon(folder, terminal, monkeypatch):
    monkeypatch.setattr(progress, "AFTER", 60.0)
    converted()
    assert "320" not in terminal.getvalue()


def test_nothing_is_shown_with_json(folder, terminal):
    converted(quiet=True)
    with working("matching", quiet=True):
        pass
    assert terminal.getvalue() == ""


def test_nothing_is_shown_where_stderr_is_no_terminal(folder, capsys):
    converted()
    with working("matching", quiet=False):
        pass
    assert capsys.readouterr().err == ""


def test_what_cannot_be_counted_is_named(terminal):
    with working("matching [a]", quiet=False):
        pass
    assert "matching [a]" in terminal.getvalue()
