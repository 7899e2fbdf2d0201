"""FP8 in tiles of 128, as DeepSeek-V3 trains: each op in plain torch and as a Triton kernel."""
