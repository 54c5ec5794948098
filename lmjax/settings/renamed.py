"""The old names of what is called otherwise now, which saved recipes and users' files still have.

`recipe.json` is read with the new names. A recipe file or a command with an old name is answered with the new one.
"""

from __future__ import annotations

RENAMED: dict[str, dict[str, str]] = {}  # fields by the settings' class: {"PPOSettings": {"old": "new"}}
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
    """A value of a saved recipe, in which "package.module:function" has the module's new name."""
    module, colon, function = value.partition(":")
    return MODULES.get(module, module) + colon + function if colon else value


def module_hint(error: BaseException) -> str:
    """For an import of a module that has another name now: the new one."""
    missing = f"{error.name}." if isinstance(error, ModuleNotFoundError) else "-"
    told = (f"{old} is now {new}" for old, new in MODULES.items() if f"{old}.".startswith(missing))
    return next((f"; {hint}" for hint in told), "")
