"""The token cache: one safetensors file `<folder>/<first 16 hex digits of the key>.safetensors`.

Tensors, little-endian, in this order in the file:
    offsets  I64 [documents + 1]   document d is tokens[offsets[d] : offsets[d + 1]]; offsets[0] = 0
    tokens   I32 [N]
    labels   I32 [N]               unshifted: labels[i] is tokens[i] (or the id that a pre-tokenised line gave) where
             it is a
                                   target, predicted from position i - 1; -100 elsewhere. The first label of a document
                                       is
                                   always -100, since nothing predicts it; every document has a target.
    weights  F32 [N]               how much predicting each token counts in the loss; it means nothing where the label is
             -100. Only where some target counts other than 1.
Metadata, all strings: moetune_tokens "1" (version of this format), documents, tokens, target_tokens (labels that are
not -100), format (messages, prompt/completion, prompt/completion messages, alpaca, sharegpt, text, input_ids/labels),
vocab_size (highest id of the tokenizer, or of the data where no tokenizer was needed, plus one), notes (JSON: what is said of it again), key (64 hex digits), sources
(JSON: what the key was made from).

The key is the SHA-256 of everything that shaped the tokens, so a cache is never stale: other content, other name. The
file is written beside its place, synced and renamed; equal input gives equal bytes (the header is written here because
the safetensors package orders metadata at random).
"""

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np

FORMAT_VERSION = "1"


def sha256_file(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def code_digest():
    """Digest of this package's own source files: a changed rule makes a new cache."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def key_of(sources):
    """SHA-256 of the ingredients, a dictionary of strings."""
    return hashlib.sha256(json.dumps(sources, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def cache_path(folder, key):
    return Path(folder) / f"{key[:16]}.safetensors"


def write(path, chunks, metadata):
    """Writes chunks, a list of (tokens, labels, lengths of the documents, weights or None), atomically to path."""
    lengths = np.concatenate([c[2] for c in chunks])
    offsets = np.zeros(len(lengths) + 1, dtype="<i8")
    np.cumsum(lengths, out=offsets[1:])
    total = int(offsets[-1])
    header, begin = {"__metadata__": metadata}, 0
    columns = [("offsets", "I64", len(offsets), 8), ("tokens", "I32", total, 4), ("labels", "I32", total, 4)]
    weighted = any(c[3] is not None for c in chunks)
    if weighted:
        columns.append(("weights", "F32", total, 4))
    for name, dtype, count, width in columns:
        header[name] = {"dtype": dtype, "shape": [count], "data_offsets": [begin, begin + count * width]}
        begin += count * width
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + offsets.tobytes())
            for column in (0, 1):
                for chunk in chunks:
                    f.write(np.ascontiguousarray(chunk[column], dtype="<i4"))
            for chunk in chunks if weighted else ():
                weights = (chunk[1] != -100) if chunk[3] is None else chunk[3]
                f.write(np.ascontiguousarray(weights, dtype="<f4"))
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_metadata(path, key):
    """The metadata of a whole cache with this key, or None: a file that is not there, not ours, or cut short."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            length = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(min(length, 1 << 20)))
        whole = size == 8 + length + max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__")
        metadata = header["__metadata__"]
        return metadata if whole and metadata["moetune_tokens"] == FORMAT_VERSION and metadata["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
