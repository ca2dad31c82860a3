#!/usr/bin/env python3
"""Makes the quickstart's data and its tiny base model's folder from WordNet's nouns (Debian package wordnet-base).

    python scripts/quickstart_data.py OUT_DIR [--wordnet /usr/share/wordnet/data.noun]

OUT_DIR/pretrain.jsonl           {"text"}: a noun and its gloss, of every noun synset that is not held out (81,115)
OUT_DIR/pretrain_heldout.jsonl   the same of 1,000 synsets
OUT_DIR/train.jsonl              50,000 {"messages"}: what kind of thing is this noun? -> its class, one of 26
OUT_DIR/heldout.jsonl            the same question on those 1,000 synsets, whose nouns and definitions occur in no
                                 other file's line
OUT_DIR/base/                    tokenizer.json (byte-level BPE, 4,096 tokens, trained on pretrain.jsonl and the
                                 answers), tokenizer_config.json with
                                 the chat template, config.json of a DeepSeek-V3 of 2.2 M parameters,
                                     generation_config.json
Equal input gives equal files.
"""

import argparse
import json
import random
import sys
from pathlib import Path

SEED = 17
HELD_OUT = 1_000
CONVERSATIONS = 50_000
QUESTION_WORDS = 24  # of the definition: the quickstart trains on CPUs, where every token costs
VOCABULARY = 4_096

# WordNet's lexicographer files of nouns, numbers 3 to 28 (man page lexnames).
CLASSES = dict(
    enumerate(
        (
            "top",
            "act",
            "animal",
            "artifact",
            "attribute",
            "body",
            "cognition",
            "communication",
            "event",
            "feeling",
            "food",
            "group",
            "location",
            "motive",
            "object",
            "person",
            "phenomenon",
            "plant",
            "possession",
            "process",
            "quantity",
            "relation",
            "shape",
            "state",
            "substance",
            "time",
        ),
        start=3,
    )
)

BOS, EOS, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
TEMPLATE = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'user' %}{{ '<|user|>' + message.content }}
{%- elif message.role == 'assistant' %}{{ '<|assistant|>' + message.content + eos_token }}
{%- else %}{{ raise_exception('roles are user and assistant') }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_interleave": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "use_cache": True,
    "torch_dtype": "float32",
}


def read_nouns(path):
    """[(noun, class, gloss)] of every synset of a WordNet noun database, in its order (man page wndb)."""
    nouns = []
    with open(path, encoding="ascii") as f:
        for line in f:
            if line.startswith("  "):
                continue  # the licence at the head of the file
            fields, gloss = line.split(" | ", 1)
            fields = fields.split(" ", 5)
            nouns.append((fields[4].replace("_", " "), CLASSES[int(fields[1])], gloss.strip()))
    return nouns


def definition(gloss):
    """The gloss without its quoted examples, cut to QUESTION_WORDS words."""
    words = gloss.split('; "')[0].split()
    return " ".join(words[:QUESTION_WORDS])


def conversation(noun, kind, gloss):
    return {
        "messages": [
            {"role": "user", "content": f"What kind of thing is {noun}: {definition(gloss)}?"},
            {"role": "assistant", "content": kind},
        ]
    }


def text(noun, kind, gloss):
    return {"text": f"{noun}: {gloss}"}


def split(nouns):
    """(training, held-out) synsets: a held-out one shares neither its noun nor its definition with another."""

    def count(keys):
        counts = {}
        for k in keys:
            counts[k] = counts.get(k, 0) + 1
        return counts

    by_noun = count(n[0].lower() for n in nouns)
    by_definition = count(definition(n[2]) for n in nouns)
    alone = [i for i, n in enumerate(nouns) if by_noun[n[0].lower()] == 1 and by_definition[definition(n[2])] == 1]
    held = set(random.Random(SEED).sample(alone, HELD_OUT))
    training = [n for i, n in enumerate(nouns) if i not in held]
    random.Random(SEED + 1).shuffle(training)
    held_out = [nouns[i] for i in sorted(held)]
    random.Random(SEED + 2).shuffle(held_out)
    return training, held_out


def write_lines(path, values):
    path.write_text("".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values), encoding="utf-8")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_base(folder, texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, USER, ASSISTANT],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": EOS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONFIG["max_position_embeddings"],
            "chat_template": TEMPLATE,
        },
    )
    write_json(folder / "config.json", CONFIG)
    write_json(
        folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "do_sample": False}
    )


def main():
    parser = argparse.ArgumentParser(description="Makes the quickstart's data and base model folder from WordNet.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet/data.noun"))
    options = parser.parse_args()
    if not options.wordnet.is_file():
        print(f"error: {options.wordnet} is not there\n  fix: apt-get install wordnet-base", file=sys.stderr)
        return 2
    nouns = read_nouns(options.wordnet)
    training, held_out = split(nouns)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = [text(*n) for n in training]
    write_lines(options.out / "pretrain.jsonl", texts)
    write_lines(options.out / "pretrain_heldout.jsonl", (text(*n) for n in held_out))
    write_lines(options.out / "train.jsonl", (conversation(*n) for n in training[:CONVERSATIONS]))
    write_lines(options.out / "heldout.jsonl", (conversation(*n) for n in held_out))
    # The answers are among the tokenizer's texts, so that a class is one token or two.
    write_base(options.out / "base", [t["text"] for t in texts] + [kind for _, kind, _ in training[:CONVERSATIONS]])
    print(
        f"{options.out}: {len(texts):,} texts, {CONVERSATIONS:,} conversations, {len(held_out):,} nouns held out of"
        " both, base/"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
