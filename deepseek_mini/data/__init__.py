"""Text sources, tokenizer, packing and loading: from files on disk to batches of token ids.

source -> documents -> corpus (train | validation) -> token streams -> sequences -> batches
"""

from deepseek_mini.data.build import Data, build_data
from deepseek_mini.data.loader import Loader
from deepseek_mini.data.packing import Batch, Split
from deepseek_mini.data.sources import check_source
from deepseek_mini.data.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Batch", "Data", "Loader", "Split", "Tokenizer", "build_data", "check_source", "load_tokenizer"]
