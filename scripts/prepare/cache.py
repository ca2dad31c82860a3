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

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

from prepare.sample import IGNORED

FORMAT_VERSION = "1"
COPY_BYTES = 4 << 20
LEFTOVER_SECONDS = 3600


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


class Writer:
    """A cache that grows: documents go to unnamed files beside its place until all are there. The constructor makes the
    folder.

    with Writer(path) as writer:
        writer.append(tokens, labels, lengths, weights or None)
        writer.finish(metadata)
    """

    def __init__(self, path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        self.tokens, self.labels = (tempfile.TemporaryFile(dir=path.parent) for _ in range(2))
        self.weights = None  # only once a target counts other than 1
        self.lengths = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in (self.tokens, self.labels, self.weights):
            if file is not None:
                file.close()

    def append(self, tokens, labels, lengths, weights):
        """Arrays of documents one behind the other, and the length of each."""
        if weights is not None and self.weights is None:
            self.weights = tempfile.TemporaryFile(dir=self.path.parent)
            self.labels.seek(0)
            while raw := self.labels.read(COPY_BYTES):
                self.weights.write(_weights_of(np.frombuffer(raw, dtype="<i4")))
        if self.weights is not None:
            self.weights.write(_weights_of(labels) if weights is None else np.ascontiguousarray(weights, dtype="<f4"))
        self.tokens.write(np.ascontiguousarray(tokens, dtype="<i4"))
        self.labels.write(np.ascontiguousarray(labels, dtype="<i4"))
        self.lengths.append(np.asarray(lengths, dtype=np.int32))

    def finish(self, metadata):
        """Puts the file together and under its name, durably."""
        lengths = np.concatenate(self.lengths)
        offsets = np.zeros(len(lengths) + 1, dtype="<i8")
        np.cumsum(lengths, out=offsets[1:])
        total = int(offsets[-1])
        columns = [("tokens", "I32", self.tokens), ("labels", "I32", self.labels)]
        if self.weights is not None:
            columns.append(("weights", "F32", self.weights))
        header = {
            "__metadata__": metadata,
            "offsets": {"dtype": "I64", "shape": [len(offsets)], "data_offsets": [0, offsets.nbytes]},
        }
        begin = offsets.nbytes
        for name, dtype, _ in columns:
            header[name] = {"dtype": dtype, "shape": [total], "data_offsets": [begin, begin + 4 * total]}
            begin += 4 * total
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(partial, "wb") as f:
                f.write(struct.pack("<Q", len(text)) + text)
                f.write(offsets)
                for _, _, column in columns:
                    column.seek(0)
                    shutil.copyfileobj(column, f, COPY_BYTES)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove_leftovers(folder):
    """What a preparation that was killed while it put a file together has left; one at work writes all the time."""
    for path in folder.glob(".*.safetensors.*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


def _weights_of(labels):
    """Of documents in which every target counts 1."""
    return (np.asarray(labels) != IGNORED).astype("<f4")


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
