"""Models across the border: the layout of DeepSeek's releases and of Hugging Face, both ways."""
