"""Every family that moetune trains: tiny checkpoints as users download them, and what must be computed with them.

    family = families.FAMILIES["mixtral"]
    folder = checkpoint.write(family, "window", "/tmp/window")      # the same bytes on every call
    expected = reference.run(config, kind=oracle.Oracle)            # config["model"] is such a folder

A family is a page: the values of its config.json and the shapes that together exercise every option.
"""

import importlib

PAGES = (
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "llama4",
    "minimax_m2",
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
)

FAMILIES = {
    page.FAMILY.model_type: page.FAMILY for page in (importlib.import_module(f"families.{name}") for name in PAGES)
}

# What moetune trains. The tests of a family in this list fail where the program refuses it; those of another are skipped
# while the program refuses its model_type by name, and fail as soon as it does not, until the family stands here.
SUPPORTED = tuple(FAMILIES)
