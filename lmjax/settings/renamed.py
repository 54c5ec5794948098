"""Names that have changed, and that saved recipes, users' recipe files and commands may still have.

A saved recipe is read with the new names. For an old name in a recipe file or a command the error gives the new one.
"""

from __future__ import annotations

RENAMED: dict[str, dict[str, str]] = {  # by the settings' class, which may be a base
    "PPOSettings": {
        "decay": "gae_lambda",
        "average": "ema_decay",
        "mix_coefficient": "ptx_coefficient",
        "mix_rows": "ptx_rows",
    },
    "RewardSettings": {"gold": "known_reward", "missing_end_penalty": "no_eos_penalty"},
    "SFT": {"judge": "reward_model"},
    "Compare": {"gold": "known_reward", "proxy": "reward_model", "missing_end_penalty": "no_eos_penalty"},
}
MODULES = {
    "lmjax.recipe": "lmjax.settings",
    "lmjax.rlhf_recipes": "lmjax.settings",
    "lmjax.rlhf_settings": "lmjax.settings",
    "lmjax.rlhf.gold": "lmjax.rl.known_rewards",
}


def renamed_fields(settings: type) -> dict[str, str]:
    """The new names of the fields of a settings class, by the old ones."""
    return {old: new for part in settings.__mro__ for old, new in RENAMED.get(part.__name__, {}).items()}


def renamed_function(value: str) -> str:
    """A string of a saved recipe; in "package.module:function" the module has its new name."""
    module, colon, function = value.partition(":")
    return MODULES.get(module, module) + colon + function if colon else value


def module_hint(error: BaseException) -> str:
    """For an import of a module that has a new name: that name."""
    missing = f"{error.name}." if isinstance(error, ModuleNotFoundError) else "-"
    moved = (f"; {old} is now {new}" for old, new in MODULES.items() if f"{old}.".startswith(missing))
    return next(moved, "")
