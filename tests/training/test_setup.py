"""What torch's grouped product asks of a run on CUDA."""

import pytest
import torch
import torch.nn.functional as F

from deepseek_mini.config import Format, ModelConfig, MtpConfig
from deepseek_mini.training import trainer
from deepseek_mini.training.setup import check_grouped_products
from deepseek_mini.training.trainer import run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def said(model: ModelConfig, format: Format, device: torch.device = CUDA) -> list[str]:
    lines: list[str] = []
    check_grouped_products(model, format, device, lines.append)
    return lines


@pytest.fixture(params=[(9, 0)])
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be a GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: request.param)


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (10, 3)], indirect=True)
def test_where_torch_has_the_product_there_is_nothing_to_say(capability: None) -> None:
    assert said(ModelConfig(), Format.bf16) == said(ModelConfig(), Format.auto) == []


@pytest.mark.parametrize(
    ("capability", "format"),
    [((9, 0), Format.fp32), ((8, 0), Format.bf16), ((7, 5), Format.auto), ((12, 0), Format.auto)],
    indirect=["capability"],
)
def test_where_it_falls_back_to_a_loop_one_line_says_that_the_host_waits(
    format: Format, capability: None
) -> None:
    (line,) = said(ModelConfig(), format)
    assert "the host waits" in line


@pytest.mark.parametrize("key", ["dim", "moe_inter_dim"])
@pytest.mark.parametrize(
    ("format", "dtype", "width"), [(Format.bf16, torch.bfloat16, 100), (Format.fp32, torch.float32, 102)]
)
def test_rows_that_are_no_multiple_of_16_bytes_are_refused_with_the_next_width(
    key: str, format: Format, dtype: torch.dtype, width: int, capability: None
) -> None:
    model = ModelConfig()
    setattr(model, key, width)
    with pytest.raises(ValueError, match=rf"model\.{key}={width} .* set model\.{key}=104 "):
        said(model, format)
    setattr(model, key, 104)
    said(model, format)
    x_SD, w_EDI = torch.ones(4, width, dtype=dtype), torch.ones(2, width, 16, dtype=dtype)
    with pytest.raises(
        RuntimeError, match="multiple of 16 bytes"
    ):  # of torch, which has this rule on CPUs too
        F.grouped_mm(x_SD, w_EDI, offs=torch.tensor([1, 4], dtype=torch.int32))


def test_a_cpu_fp8_and_a_model_without_experts_are_not_concerned(capability: None) -> None:
    assert said(ModelConfig(dim=99), Format.fp32, CPU) == []
    assert said(ModelConfig(dim=99), Format.fp8) == []
    assert said(ModelConfig(dim=99, n_dense_layers=61, mtp=MtpConfig(depth=0)), Format.fp32) == []


def test_a_run_is_refused_before_it_takes_its_directory(
    make_config, tmp_path, monkeypatch: pytest.MonkeyPatch, capability: None
) -> None:
    config = make_config("model.moe_inter_dim=12", "precision=bf16")
    monkeypatch.setattr(trainer, "choose_device", lambda _: (CUDA, "it is pretended"))
    with pytest.raises(ValueError, match=r"model\.moe_inter_dim=12 must be a multiple of 8"):
        run(config, tmp_path / "run", [])
    assert not (tmp_path / "run").exists()
