"""A command run in this process, as from the command line."""

import sys


def called(command, words, monkeypatch, capsys) -> tuple[int, str, list[str]]:
    """Its exit code, its stdout, and its lines on stderr.

    Args:
        command: the module.
        words: of the command line, of any type.
        monkeypatch: puts the command line back afterwards.
        capsys: takes what is said.
    """
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, words)])
    capsys.readouterr()
    code = 0
    try:
        command.main()
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    return code, out, err.splitlines()
