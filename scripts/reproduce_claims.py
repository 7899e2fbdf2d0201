"""Popular claims about DeepSeek-V3: the primary source, what is computed or measured here, and a verdict.

    python scripts/reproduce_claims.py [RUNS ...] [--out DIR] [--json]

RUNS are folders of ablations, such as runs/ablate_balance: what they measured stands beside the claims. The
page is claims.md in --out, with its plots beside it.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from deepseek_mini.ending import UserError, exit_code


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reproduce_claims.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="folders of an ablation's runs")
    parser.add_argument(
        "--out", type=Path, default=Path("claims"), metavar="DIR", help="for the page (claims/)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: reproduce(arguments), UserError)


def reproduce(arguments: argparse.Namespace) -> None:
    """Write the page, or print the JSON. Raises UserError for what the user can mend."""
    from deepseek_mini.analysis.claims_page import draw_claims, make_page
    from deepseek_mini.analysis.studies import measured, other_verdicts, read_study
    from deepseek_mini.compose import compose
    from deepseek_mini.cost.claim import Topic
    from deepseek_mini.cost.extrapolate import v3_claims
    from deepseek_mini.cost.layer_profile import read_layer_profile
    from deepseek_mini.cost.plan import make_plan, parse_cluster
    from deepseek_mini.cost.shape import shape_of

    try:
        studies = [read_study(path) for path in arguments.runs]
    except ValueError as error:
        raise UserError(str(error)) from error
    v3, profile = compose(["model=v3_671b"]).config, read_layer_profile()
    plan = make_plan("v3_671b", v3, parse_cluster("h800_2048"))
    claims = v3_claims(plan, profile, shape_of(compose([f"model={profile.model}"]).config.model), v3.model)
    if arguments.json:
        found = {topic.name: measured(topic, studies) for topic in Topic}
        found["others"] = other_verdicts(studies)
        rows = [{**asdict(claim), "topic": claim.topic.name} for claim in claims]
        print(json.dumps({"claims": rows, "measured": found}))
        return
    words = ["python", "scripts/reproduce_claims.py", *map(str, arguments.runs), "--out", str(arguments.out)]
    page = arguments.out / "claims.md"
    try:
        picture = draw_claims(v3.model, claims, studies, arguments.out / "claims.png")
        page.write_text(make_page(claims, studies, shlex.join(words), picture.name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {arguments.out} cannot be written ({error}); name another folder") from error
    print(f"{page}, {picture.name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
