"""Compile the production configurations for Hopper, without a GPU or a driver, and say what they use.

    python -m deepseek_mini_kernels.compile [NAME ...] [--json]

Needs triton, and no TRITON_INTERPRET in the environment.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from deepseek_mini_kernels.configs import OTHER_CALLS, PRODUCTION, Launch
from deepseek_mini_kernels.launch import load

HOPPER = 90
LARGEST_SHARED = 227 * 1024
"""Bytes of shared memory that one block may have on H100, H800 and H200."""
INSTRUCTIONS = {
    "fp8_products": r"\bQGMMA\b",
    "other_products": r"\b(?:HMMA|HGMMA|IMMA)\b",
    "async_loads": r"\b(?:LDGSTS|UTMALDG)\b",
    "spills": r"\b(?:LDL|STL)\b",
}
"""Machine instructions whose number is reported."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled configuration takes of a multiprocessor, and the instructions it consists of."""

    target: str
    threads: int
    registers: int
    """Per thread."""
    stack: int
    """Bytes per thread; registers are spilt if there are any."""
    shared: int
    """Bytes per block."""
    fp8_products: int
    other_products: int
    async_loads: int
    spills: int
    saturating_casts: int


def resources(config: Launch) -> Resources:
    """Compile a configuration for sm_90a and read its resources off the machine code."""
    compiled = _compile(config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        usage = _dump(file, "--dump-resource-usage")
        code = _dump(file, "-sass")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    target = re.search(r"\.target (\w+)", compiled.asm["ptx"])
    assert found, usage
    assert target, config.name
    return Resources(
        target=target[1],
        threads=32 * config.num_warps,
        registers=int(found[1]),
        stack=int(found[2]),
        shared=compiled.metadata.shared,
        saturating_casts=compiled.asm["ptx"].count("cvt.rn.satfinite.e4m3x2.f32"),
        **{name: len(re.findall(pattern, code)) for name, pattern in INSTRUCTIONS.items()},
    )


def _compile(config: Launch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**config.tile, **config.problem}
    signature = dict(config.types) | dict.fromkeys(constants, "constexpr")
    names = load(config).arg_names
    assert sorted(names) == sorted(signature), (config.name, names, list(signature))
    promised = [name for name in names if signature[name].startswith("*") or name in config.divisible]
    source = ASTSource(
        load(config),
        {name: signature[name] for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in promised},
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=options)


def _dump(file: Path, option: str) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([tool, option, file], check=True, capture_output=True, text=True).stdout


def table(rows: dict[str, Resources]) -> str:
    """The resources as text, a configuration a line."""
    columns = ("threads", "registers", "stack", "shared", "fp8_products", "async_loads", "spills")
    lines = [f"{'configuration':34}" + "".join(f"{column:>14}" for column in columns)]
    for name, row in rows.items():
        lines.append(f"{name:34}" + "".join(f"{getattr(row, column):>14}" for column in columns))
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="deepseek_mini_kernels.compile")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all configurations")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args(argv)
    known = PRODUCTION | OTHER_CALLS
    if unknown := set(arguments.names) - set(known):
        parser.error(f"no configuration {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    rows = {name: resources(known[name]) for name in arguments.names or PRODUCTION}
    if arguments.json:
        print(json.dumps({name: asdict(row) for name, row in rows.items()}))
    else:
        print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
