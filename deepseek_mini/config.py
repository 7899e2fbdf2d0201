"""Every setting of a run: dataclasses, enums and the checks across fields.

This module is the schema; the yaml files under `configs/` hold only choices, and all code receives
these dataclasses. It imports no torch, so that a mistyped key is answered at once.

Keys under `model` carry the names of DeepSeek's own `config_671B.json`; the defaults are DeepSeek-V3
(arXiv:2412.19437, section 4.2) unless a field says otherwise.
"""

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum

from deepseek_mini.checks import require, require_at_least, require_positive

LARGEST_SEED = 2**32 - 1


class Attention(StrEnum):
    mla = "mla"
    mha = "mha"
    gqa = "gqa"
    mqa = "mqa"


class AttentionMatch(StrEnum):
    none = "none"
    parameters = "parameters"
    kv_bytes = "kv_bytes"


class ScoreFunction(StrEnum):
    sigmoid = "sigmoid"
    softmax = "softmax"


class GroupScore(StrEnum):
    top2 = "top2"
    max = "max"


class Balance(StrEnum):
    bias = "bias"
    aux_loss = "aux_loss"
    none = "none"


class BalanceScope(StrEnum):
    sequence = "sequence"
    batch = "batch"


class Source(StrEnum):
    python = "python"
    text_files = "text_files"
    wiki = "wiki"


class Format(StrEnum):
    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"
    fp8 = "fp8"


class Backend(StrEnum):
    auto = "auto"
    te = "te"
    triton = "triton"
    emulated = "emulated"


class Scales(StrEnum):
    fp32 = "fp32"
    pow2 = "pow2"


class Granularity(StrEnum):
    tiles = "tiles"
    tensor = "tensor"
    block_gradients = "block_gradients"


class Accumulation(StrEnum):
    fp32 = "fp32"
    hopper = "hopper"
    hopper_unpromoted = "hopper_unpromoted"


class Moments(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


class Optimizer(StrEnum):
    adamw = "adamw"
    muon = "muon"


class Shape(StrEnum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Recompute(StrEnum):
    none = "none"
    v3 = "v3"
    full = "full"


class Device(StrEnum):
    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"
    mps = "mps"


@dataclass(slots=True)
class MoeConfig:
    """What DeepSeek's model config lacks about the experts."""

    balance: Balance = Balance.bias
    """bias: V3's bias rule plus the sequence-wise loss; aux_loss: V2's loss alone; none: nothing."""
    bias_update_rate: float | None = 0.001
    """gamma of the bias rule, its peak (V3: 0.001); null: from the number of steps and the learning rate."""
    sequence_loss_weight: float = 1e-4
    """alpha of V3's complementary sequence-wise loss, used with balance=bias."""
    aux_loss_weight: float = 0.003
    """alpha_1 of V2's expert-level loss, used with balance=aux_loss."""
    balance_scope: BalanceScope = BalanceScope.sequence
    """What either loss balances: each sequence (V3 Eq. 17-20), or the batch as a whole (V3 section 4.5.3)."""
    granularity: int = 1
    """Split each expert into so many, at the same parameters and active FLOPs; solved when composing."""

    def __post_init__(self) -> None:
        require_at_least("model.moe", self, 1, "granularity")
        require_at_least("model.moe", self, 0, "bias_update_rate", "sequence_loss_weight", "aux_loss_weight")


@dataclass(slots=True)
class MtpConfig:
    """Multi-token prediction (V3 section 2.2)."""

    depth: int = 1
    """Number of sequential MTP modules; 0 leaves them out."""
    loss_weight: float = 0.3
    """lambda, its peak."""

    def __post_init__(self) -> None:
        require_at_least("model.mtp", self, 0, "depth", "loss_weight")


@dataclass(slots=True)
class ModelConfig:
    """The architecture. Names as in DeepSeek's config_671B.json, then what that file lacks."""

    vocab_size: int = 129280
    """Rows of the embedding and of the head."""
    dim: int = 7168
    inter_dim: int = 18432
    """Inner width of the dense SwiGLU layers."""
    moe_inter_dim: int = 2048
    """Inner width of one expert."""
    n_layers: int = 61
    n_dense_layers: int = 3
    """The first layers, which have a dense MLP and no experts."""
    n_heads: int = 128
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    n_activated_experts: int = 8
    """Routed experts that each token is sent to (K_r)."""
    n_expert_groups: int = 8
    n_limited_groups: int = 4
    """Groups that a token's experts may come from (M)."""
    score_func: ScoreFunction = ScoreFunction.sigmoid
    """sigmoid also normalises the chosen weights (V3); softmax does not (V2)."""
    route_scale: float = 2.5
    q_lora_rank: int = 1536
    """Width of the query latent; 0 projects the query directly."""
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    """Value width per head; the head width of the mha, gqa and mqa baselines."""
    original_seq_len: int = 4096
    """Context of pre-training; YaRN acts when max_seq_len exceeds it."""
    rope_theta: float = 10000.0
    rope_factor: float = 40.0
    beta_fast: int = 32
    beta_slow: int = 1
    mscale: float = 1.0
    max_seq_len: int = 4096
    attention: Attention = Attention.mla
    n_kv_heads: int = 8
    """Key and value heads of attention=gqa."""
    attention_match: AttentionMatch = AttentionMatch.none
    """Give mha, gqa or mqa the v_head_dim with which they have MLA's parameters or cache, when composing."""
    group_score: GroupScore = GroupScore.top2
    """Score of an expert group: sum of its two best biased scores (V3) or its best one (V2)."""
    init_std: float = 0.006
    init_noise: float = 0.0
    """Disturb each drawn weight by such a share of it, to see the noise floor of a comparison."""
    init_from: str | None = None
    """Start from these weights: a run, a checkpoint, an import, or a directory in Hugging Face's layout."""
    moe: MoeConfig = field(default_factory=MoeConfig)
    mtp: MtpConfig = field(default_factory=MtpConfig)

    def __post_init__(self) -> None:
        require_at_least(
            *("model", self, 1, "vocab_size", "dim", "inter_dim", "n_layers", "n_heads", "n_kv_heads"),
            *("kv_lora_rank", "moe_inter_dim", "n_routed_experts", "n_activated_experts", "n_expert_groups"),
            *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_seq_len", "original_seq_len"),
        )
        require_at_least("model", self, 0, "n_shared_experts", "q_lora_rank", "n_dense_layers", "mscale")
        require_at_least("model", self, 0, "init_noise")
        require_positive("model", self, "init_std", "rope_factor", "route_scale", "rope_theta", "beta_slow")
        require(self.rope_theta > 1, f"model.rope_theta={self.rope_theta} must be above 1")
        require(
            self.beta_fast > self.beta_slow,
            f"model.beta_fast={self.beta_fast} must be above model.beta_slow={self.beta_slow}",
        )
        require(
            self.n_dense_layers <= self.n_layers,
            f"model.n_dense_layers={self.n_dense_layers} exceeds model.n_layers={self.n_layers}",
        )
        require(
            self.n_routed_experts % self.n_expert_groups == 0,
            f"model.n_routed_experts={self.n_routed_experts} is not divisible by "
            f"model.n_expert_groups={self.n_expert_groups}",
        )
        require(
            1 <= self.n_limited_groups <= self.n_expert_groups,
            f"model.n_limited_groups={self.n_limited_groups} must lie between 1 and "
            f"model.n_expert_groups={self.n_expert_groups}",
        )
        reachable = self.n_limited_groups * self.experts_per_group
        require(
            self.n_activated_experts <= reachable,
            f"model.n_activated_experts={self.n_activated_experts} exceeds the {reachable} experts of "
            f"model.n_limited_groups={self.n_limited_groups} groups; "
            f"set model.n_activated_experts<={reachable}",
        )
        require(
            self.group_score is GroupScore.max or self.n_expert_groups == 1 or self.experts_per_group >= 2,
            f"model.group_score=top2 needs 2 experts per group, got {self.experts_per_group}; "
            "lower model.n_expert_groups or set model.group_score=max",
        )
        require(
            self.qk_rope_head_dim % 2 == 0,
            f"model.qk_rope_head_dim={self.qk_rope_head_dim} must be even: RoPE turns pairs",
        )
        if self.attention is not Attention.mla:
            require(
                self.v_head_dim % 2 == 0,
                f"model.v_head_dim={self.v_head_dim} must be even with model.attention={self.attention}",
            )
        if self.attention is Attention.gqa:
            require(
                self.n_heads % self.n_kv_heads == 0,
                f"model.n_heads={self.n_heads} is not divisible by model.n_kv_heads={self.n_kv_heads}",
            )

    @property
    def experts_per_group(self) -> int:
        return self.n_routed_experts // self.n_expert_groups

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def balance_loss_weight(self) -> float:
        """alpha of the auxiliary loss that `moe.balance` asks for."""
        return {
            Balance.bias: self.moe.sequence_loss_weight,
            Balance.aux_loss: self.moe.aux_loss_weight,
            Balance.none: 0.0,
        }[self.moe.balance]


@dataclass(slots=True)
class DataConfig:
    """The corpus, its tokenizer and how it is cut into sequences."""

    source: Source = Source.python
    """python: the interpreter's standard library; text_files: data.path; wiki: the [wiki] extra."""
    path: str | None = None
    """Glob of UTF-8 text files, one document each, for data=text_files."""
    tokenizer: str = "bpe"
    """bpe (byte-level, trained on the corpus to model.vocab_size), byte, or the path of a tokenizer.json."""
    sequence_length: int = 512
    """Tokens per sequence."""
    batch_size: int = 8
    """Sequences per optimizer step, at the end of the batch-size ramp."""
    document_mask: bool = False
    """Attend within documents only; V3 pre-trains without (section 4.1)."""
    validation_fraction: float = 0.05
    """Share of the documents, chosen by their hash, that are held out."""
    cache_dir: str | None = None
    """Where tokenizers and token shards are kept; null is the user's cache folder."""

    def __post_init__(self) -> None:
        require_at_least("data", self, 1, "sequence_length", "batch_size")
        fraction = self.validation_fraction
        require(0 < fraction < 1, f"data.validation_fraction={fraction} must lie between 0 and 1")
        require(
            self.path is None or self.source is Source.text_files,
            f"data.path={self.path!r} needs data=text_files; data={self.source} has its own text",
        )


@dataclass(slots=True)
class PrecisionConfig:
    """The arithmetic of the matrix products. Master weights are always FP32."""

    format: Format = Format.auto
    """auto: bf16 where the device has it in hardware, else fp32; fp8: linears in FP8, the rest as auto."""
    backend: Backend = Backend.auto
    """What multiplies in FP8; auto: te on Hopper where it is installed, else triton, else emulated."""
    scales: Scales = Scales.fp32
    """Factors of FP8 tiles and blocks: as they are (V3), or rounded up to powers of two (V3.1)."""
    granularity: Granularity = Granularity.tiles
    """What has a factor: tiles and blocks (V3); for studies whole tensors, or blocks of gradients too."""
    accumulation: Accumulation = Accumulation.fp32
    """Sums of FP8 products; hopper: as its tensor cores add, promoted every 128 elements, or never."""

    def __post_init__(self) -> None:
        defaults = {item.name: item.default for item in fields(self) if item.name != "format"}
        for key, default in defaults.items():
            value = getattr(self, key)
            require(
                value is default or self.format is Format.fp8,
                f"precision.{key}={value} says how FP8 is done, and precision.format={self.format} has none; "
                f"set precision=fp8 or leave precision.{key} out",
            )
        for key in ("granularity", "accumulation"):
            value = getattr(self, key)
            require(
                value is defaults[key] or self.backend in (Backend.auto, Backend.emulated),
                f"precision.{key}={value} is emulated; set precision.backend=emulated",
            )


@dataclass(slots=True)
class OptimizerConfig:
    """AdamW as in V3 section 4.2, or Muon on the hidden matrices with AdamW on the rest."""

    name: Optimizer = Optimizer.adamw
    lr: float = 2.2e-4
    """Peak learning rate."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """On matrices, not on norms."""
    moments: Moments = Moments.fp32
    """What moments are kept in; bf16 (V3 section 3.3.3) halves their memory."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""
    muon_momentum: float = 0.95
    embedding_lr_scale: float = 1.0
    """Learning rate of the embedding in units of `lr`; V3 has one rate for all."""

    def __post_init__(self) -> None:
        require_positive("optimizer", self, "lr", "eps", "clip_norm", "embedding_lr_scale")
        for key in ("beta1", "beta2", "muon_momentum"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optimizer.{key}={value} must be at least 0 and below 1")
        require_at_least("optimizer", self, 0, "weight_decay")


@dataclass(slots=True)
class Phase:
    """One stretch of a schedule: a multiplier on a peak value, over the fraction of the run's tokens."""

    until: float = 1.0
    """Fraction of the run's tokens at which this phase ends."""
    value: float = 1.0
    """Multiplier: throughout the phase if constant, else reached at its end from the previous phase's."""
    shape: Shape = Shape.constant
    start: float | None = None
    """Multiplier where the phase begins, for linear and cosine; null is the previous phase's value."""


@dataclass(slots=True)
class ScheduleConfig:
    """Multipliers over the fraction of tokens; the peaks live with what they scale."""

    min_warmup_steps: int = 10
    """The learning rate rises linearly for at least so many steps."""
    warmup: float = 0.0017
    """Fraction of the run's tokens over which the learning rate rises (V3: 2,000 steps of 14.8T tokens)."""
    lr: list[Phase] = field(default_factory=lambda: [Phase()])
    mtp_weight: list[Phase] = field(default_factory=lambda: [Phase()])
    bias_rate: list[Phase] = field(default_factory=lambda: [Phase()])
    batch_size: list[Phase] = field(default_factory=lambda: [Phase()])

    def __post_init__(self) -> None:
        for name in ("lr", "mtp_weight", "bias_rate", "batch_size"):
            phases: list[Phase] = getattr(self, name)
            ends = [phase.until for phase in phases]
            require(
                bool(ends) and ends[-1] == 1.0 and [0.0, *ends] == sorted({0.0, *ends}),
                f"schedule.{name}: the `until` of its phases must rise to 1.0, got {ends}",
            )
            factors = [x for phase in phases for x in (phase.start, phase.value) if x is not None]
            require(
                all(0 <= factor < math.inf for factor in factors),
                f"schedule.{name}: `start` and `value` must be finite and not negative, got {factors}",
            )
        require(
            all(phase.value and phase.start != 0 for phase in self.batch_size),
            "schedule.batch_size: `start` and `value` must be above 0: a step has a sequence at least",
        )
        require(0 <= self.warmup < 1, f"schedule.warmup={self.warmup} is a fraction of the run, below 1")
        require_at_least("schedule", self, 0, "min_warmup_steps")


@dataclass(slots=True)
class TrainerConfig:
    """Length of the run, what happens how often, and how a step is cut up."""

    max_steps: int | None = None
    """Optimizer steps; give this, max_tokens or max_flops."""
    max_tokens: int | None = None
    """Tokens to train on, rounded up to a whole step."""
    max_flops: float | None = None
    """Training FLOPs to spend (causal, with MTP, without the gate); becomes max_tokens when composing."""
    micro_batch_size: int | None = None
    """Sequences per forward pass; null is the whole batch. It does not change the result."""
    recompute: Recompute = Recompute.none
    """v3: norms, MLA's up-projections and SwiGLU's product again in the backward pass; full: whole blocks."""
    log_every: int = 10
    eval_every: int = 100
    """Steps between evaluations; the last step is always evaluated."""
    eval_sequences: int = 32
    """Held-out sequences per evaluation, always the same ones."""
    sample_every: int = 100
    """Steps between samples; 0 for none."""
    save_every: int = 100
    keep_checkpoints: int = 3

    def __post_init__(self) -> None:
        require(
            [self.max_steps, self.max_tokens, self.max_flops].count(None) == 2,
            "trainer.max_steps, trainer.max_tokens and trainer.max_flops: set exactly one of them, the "
            "others to null",
        )
        require_at_least(
            *("trainer", self, 1, "max_steps", "max_tokens", "max_flops", "micro_batch_size", "log_every"),
            *("eval_every", "eval_sequences", "save_every", "keep_checkpoints"),
        )
        require_at_least("trainer", self, 0, "sample_every")


@dataclass(slots=True)
class WandbConfig:
    """Weights & Biases; without an account it logs offline, into the run directory."""

    project: str = "deepseek_mini"
    entity: str | None = None
    mode: str | None = None
    """online, offline or disabled; null is online where a key is found, else offline."""

    def __post_init__(self) -> None:
        modes = ("online", "offline", "disabled")
        require(
            self.mode in (None, *modes), f"logger.wandb.mode={self.mode} must be one of {', '.join(modes)}"
        )


@dataclass(slots=True)
class TensorboardConfig:
    """TensorBoard event files, in the run directory."""

    flush_seconds: int = 30

    def __post_init__(self) -> None:
        require_at_least("logger.tensorboard", self, 1, "flush_seconds")


@dataclass(slots=True)
class LoggerConfig:
    """Trackers beside the console and metrics.jsonl, which are always on."""

    wandb: WandbConfig | None = None
    tensorboard: TensorboardConfig | None = None


@dataclass(slots=True)
class Config:
    """A run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_steps=1000))
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0
    scale: float = 1.0
    """Multiply all widths of the model by this, and the run's tokens by its square, when composing."""
    device: Device = Device.auto
    run_dir: str | None = None
    """Where the run is kept; null is a function of the overrides, so that the same command resumes."""
    resume: str = "auto"
    """auto: go on where the run directory stands; never: refuse a used one; or the path of a checkpoint."""
    check: bool = False
    """Build on meta, print parameters, FLOPs, memory and time, and stop."""

    def __post_init__(self) -> None:
        require(0 <= self.seed <= LARGEST_SEED, f"seed={self.seed} must lie between 0 and {LARGEST_SEED}")
        require(0 < self.scale < math.inf, f"scale={self.scale} must be positive, and finite")
        require(self.run_dir != "", "run_dir is empty; name a folder, or leave run_dir out")
        require(
            self.model.moe.balance_scope is BalanceScope.sequence or self.trainer.micro_batch_size is None,
            "model.moe.balance_scope=batch balances the batch of a step in one pass; "
            f"set trainer.micro_batch_size={self.trainer.micro_batch_size} to null",
        )
        require(
            self.data.sequence_length <= self.model.max_seq_len,
            f"data.sequence_length={self.data.sequence_length} exceeds "
            f"model.max_seq_len={self.model.max_seq_len}; shorten the sequences or raise model.max_seq_len",
        )
        require(
            self.data.sequence_length > self.model.mtp.depth,
            f"data.sequence_length={self.data.sequence_length} leaves no token to predict at "
            f"model.mtp.depth={self.model.mtp.depth}",
        )
