"""What a command says on the terminal."""

from rich.table import Table

from ubp.cli.output import closing_line, show


def test_a_closing_line_shows_the_seconds_that_it_is_given(tmp_path, capsys):
    closing_line("a scored", tmp_path, 1234, 5, seconds=0.04)
    closing_line("all", tmp_path)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("a scored · 1,234 clients × 5 columns · 0.0 s · ")
    assert first.endswith(f" MB · {tmp_path}")
    assert float(second.split(" · ")[1].removesuffix(" s")) > 0  # since the process began


def test_a_table_is_as_wide_as_it_needs_to_be_where_no_screen_limits_it(capsys):
    table = Table("name", "figure")
    table.add_row("n" * 150, "f" * 60)
    show(table)
    out = capsys.readouterr().out
    assert "n" * 150 in out
    assert "f" * 60 in out
