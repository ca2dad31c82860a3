"""From a JSONL file to the token cache that the trainer reads.

    python scripts/prepare data/train.jsonl --model /models/DeepSeek-V3 --cache .cache/tokens --show 3

One line of the file goes through, in this order: jsonl (bytes to an object), formats (object to a conversation, a text
or tokens: keys, messages, tools, tokenised), conversation (to rendered text, with what is trained in it: fit, template,
spans, turns), tokenise (text to tokens, labels and weights), cache (tokens to one safetensors file, whose format
cache.py states). rules.py holds what the user decides, sample.py what a line is on its way. cli.py is the command line.
"""

import os

# A panic of the tokenizers package is told as a mistake of its input; the stack of a Rust program is of no use then.
os.environ["RUST_BACKTRACE"] = "0"
