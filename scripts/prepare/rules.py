"""What the user decides about the reading of lines: the recipe's section `data` (trainer/recipe/recipe_schema.h).

rules = Rules(train_on="all", ignore_keys=frozenset({"name"}))
rules.ingredients()    # {"train_on": "all", ...}: strings, for the cache's key
"""

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rules:
    train_on: str = "assistant"  # assistant, all
    special: str = "auto"  # as_text, reject, allow; auto: as_text, but text that was rendered already is an error
    thoughts: str = "refuse"  # refuse, keep
    add_bos: str = "auto"  # auto, true, false
    chat_kwargs: dict = field(default_factory=dict)  # variables of the chat template
    ignore_keys: frozenset = frozenset()  # of lines and messages

    @property
    def train_all(self):
        return self.train_on == "all"

    def ingredients(self):
        return {
            "train_on": self.train_on,
            "special_tokens": self.special,
            "thoughts": self.thoughts,
            "add_bos": self.add_bos,
            "chat_template_kwargs": json.dumps(self.chat_kwargs, sort_keys=True),
            "ignore_keys": json.dumps(sorted(self.ignore_keys)),
        }
