"""True DeepSeek-V3 training in miniature."""
