"""Rules for all tests: GPU tests skip without a GPU for FP8, and under CI nothing else may skip."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: pytest -n runs a test on each core

import pytest
import torch

RUNS_KERNELS = torch.cuda.is_available() and (9, 0) <= torch.cuda.get_device_capability() < (12, 0)
# Triton decides at its first import whether kernels run on a GPU or in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if RUNS_KERNELS else "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not RUNS_KERNELS:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a Hopper GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if os.environ.get("CI") and report.skipped and not item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped under CI: {report.longrepr}"
    return report
