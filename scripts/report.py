"""A run on one page: losses, speed, where the time went, and what each expert did.

    python scripts/report.py RUN [--out PAGE.html] [--figure PICTURE.png]

Made from the run directory alone, while the run goes on or after. The page is one file, with its pictures
inside; by default report.html in the run directory. --figure draws the run at a glance instead: loss, bits
per byte and the load of every expert.
"""

import argparse
import sys
from pathlib import Path

from deepseek_mini.ending import UserError, exit_code


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="report.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="instead of RUN/report.html")
    parser.add_argument("--figure", type=Path, metavar="PICTURE.png", help="draw one picture, and no page")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: print(report(arguments.run, arguments.out, arguments.figure)), UserError)


def report(run_dir: Path, out: Path | None, picture: Path | None) -> Path:
    """Write the page, or the picture. Raises UserError for what the user can mend."""
    from deepseek_mini.analysis import report_figures, style
    from deepseek_mini.analysis.page import make_page, read_records

    try:
        records = read_records(run_dir)
    except ValueError as error:
        raise UserError(str(error)) from error
    path = picture or out or run_dir / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if picture is not None:
            with style.styled():
                return style.save(report_figures.picture(records.run, records.experts), path)
        path.write_text(make_page(records), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); name another file") from error
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
