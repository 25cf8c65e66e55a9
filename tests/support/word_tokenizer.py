"""A tokenizer whose ids are words of their own (t0, t1, ...): a text shows of which it is made."""

import json

from tokenizers import Tokenizer
from tokenizers.models import WordLevel


def write_word_tokenizer(folder, ids=1100):
    """The files of one in ``folder``, which is returned; 2 and 3 end a text."""
    vocabulary = {f"t{i}": i for i in range(ids)}
    Tokenizer(WordLevel(vocabulary, unk_token="t0")).save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": "t2"}, "bos_token": "t1", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    return folder
