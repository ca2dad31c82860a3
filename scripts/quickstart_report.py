#!/usr/bin/env python3
"""What a fine-tune changed, seen by transformers and PEFT: the model before and after it, on held-out questions.

    python scripts/quickstart_report.py BASE ADAPTER HELDOUT.jsonl [--logits FILE] [--tokenizer DIR] [--examples 5]

BASE       the frozen weights as they were trained on, Hugging Face layout (moetune export --base)
ADAPTER    PEFT adapter (moetune export)
HELDOUT    {"messages": [user, assistant]} a line; the answers are short
--logits   safetensors file that moetune wrote with this adapter: input_ids I64 [n], logits F32 [n, V]. PEFT's logits
           must equal
           them: max |a - b| / max |b| is printed, and above 1e-3 the exit code is 1.

Printed: mean loss over the answers' tokens, share of answers that greedy decoding gives exactly, and that of always
giving the commonest answer. Greedy decoding gives the reference answer exactly when, with the reference before it, each
of its tokens (the end token too) is the most likely one, so one forward pass tells both.
"""

import argparse
import collections
import json
import logging
import os
import sys
import warnings
from pathlib import Path

BATCH = 100
TOLERANCE = 1e-3
ANSWER_TOKENS = 12  # at most, when answers are generated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# PEFT turns per-expert adapters into fused ones and then warns that patterns of its own making match no module;
# bitsandbytes, which PEFT imports, misses kernels that nothing here needs.
warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402


def load_tokenizer(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=config["bos_token"], eos_token=config["eos_token"]
    )
    tokenizer.chat_template = config["chat_template"]
    return tokenizer


def read_questions(path, tokenizer):
    """[(question, answer, tokens of both, number of prompt tokens)], sorted by length so that batches need little
    padding."""
    questions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        *asked, answer = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*asked, answer], return_dict=True)["input_ids"]
        if whole[: len(prompt)] != prompt:
            raise SystemExit(
                f"{path}: the chat template's prompt is no prefix of the whole conversation:"
                f" {asked[-1]['content'][:80]}"
            )
        questions.append((asked[-1]["content"], answer["content"], whole, len(prompt)))
    return questions


@torch.inference_mode()
def evaluate(model, questions):
    """(mean loss over the answers' tokens, share of answers that are exactly the greedy ones)."""
    loss, targets, exact = 0.0, 0, 0
    ordered = sorted(questions, key=lambda q: len(q[2]))
    for begin in range(0, len(ordered), BATCH):
        batch = ordered[begin : begin + BATCH]
        width = max(len(q[2]) for q in batch)
        # Padding stands on the right, where a causal model never looks at it.
        input_ids = torch.tensor([q[2] + [0] * (width - len(q[2])) for q in batch])
        labels = torch.tensor([[-100] * q[3] + q[2][q[3] :] + [-100] * (width - len(q[2])) for q in batch])[:, 1:]
        attention = torch.tensor([[1] * len(q[2]) + [0] * (width - len(q[2])) for q in batch])
        logits = model(input_ids=input_ids, attention_mask=attention, use_cache=False).logits[:, :-1].float()
        rows, columns = torch.nonzero(labels != -100, as_tuple=True)
        chosen, wanted = logits[rows, columns], labels[rows, columns]
        loss += torch.nn.functional.cross_entropy(chosen, wanted, reduction="sum").item()
        targets += len(wanted)
        wrong = torch.zeros(len(batch), dtype=torch.bool)
        wrong[rows[chosen.argmax(-1) != wanted]] = True
        exact += len(batch) - int(wrong.sum())
    return loss / targets, exact / len(questions)


@torch.inference_mode()
def answer(model, tokenizer, question):
    """The greedy answer to one of read_questions' rows."""
    prompt = torch.tensor([question[2][: question[3]]])
    out = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.decode(out[0, question[3] :], skip_special_tokens=True).strip()


@torch.inference_mode()
def logits_difference(model, path):
    """max |a - b| / max |b| of PEFT's logits and those in the file."""
    dumped = load_file(path)
    logits = model(input_ids=dumped["input_ids"][None], use_cache=False).logits[0].float()
    if logits.shape != dumped["logits"].shape:
        raise SystemExit(f"{path}: logits {tuple(dumped['logits'].shape)} where the model has {tuple(logits.shape)}")
    return ((logits - dumped["logits"]).abs().max() / dumped["logits"].abs().max()).item()


def main():
    parser = argparse.ArgumentParser(
        description="Compares a model before and after its fine-tune, in transformers and PEFT."
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--logits", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of tokenizer.json, if it is not BASE")
    parser.add_argument("--examples", type=int, default=5)
    options = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)  # the model is tiny: more threads would only wait for each other

    tokenizer = load_tokenizer(options.tokenizer or options.base)
    questions = read_questions(options.heldout, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32).eval()
    examples = questions[: options.examples]
    before = evaluate(model, questions), [answer(model, tokenizer, q) for q in examples]
    model = PeftModel.from_pretrained(model, str(options.adapter)).eval()
    after = evaluate(model, questions), [answer(model, tokenizer, q) for q in examples]

    commonest, count = collections.Counter(q[1] for q in questions).most_common(1)[0]
    print(f"{len(questions):,} held-out questions   before     after")
    print(f"  loss of the answers      {before[0][0]:8.4f}  {after[0][0]:8.4f}")
    print(f"  exact answers            {before[0][1]:8.1%}  {after[0][1]:8.1%}")
    print(f'  always saying "{commonest}" would be right in {count / len(questions):.1%}')
    for question, old, new in zip(examples, before[1], after[1]):
        print(f"\n  {question[0]}\n    before: {old!r}\n    after:  {new!r}   (WordNet: {question[1]!r})")
    if options.logits is None:
        return 0
    difference = logits_difference(model, options.logits)
    equal = difference <= TOLERANCE
    print(
        f"\nlogits of PEFT and of moetune: max relative difference {difference:.2e},"
        f" {'equal' if equal else 'NOT equal'} (tolerance {TOLERANCE:g})"
    )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
