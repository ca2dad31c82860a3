"""From a JSONL file to the token cache that the trainer reads.

    python scripts/prepare data/train.jsonl --model /models/DeepSeek-V3 --cache .cache/tokens --show 3

One line of the file goes through, in this order: jsonl (bytes to an object), formats (object to a conversation or a
text), template and spans (conversation to rendered text, with the place of each content in it), tokenise (text to
tokens and labels), cache (tokens to one safetensors file, whose format cache.py states). cli.py is the command line.
"""
