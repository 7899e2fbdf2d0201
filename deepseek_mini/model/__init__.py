"""The DeepSeek-V3 architecture as plain modules that know nothing of trainers, precision or ranks."""
