# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Recipes
# > The numbers in which experiments differ, each with its type and its range.
#
# A recipe has one *section* for each stage, a frozen dataclass. A stage reads its own section only. A change of the
# number of epochs therefore re-runs the training and the stages after it, but not the crops.

# %%
#| default_exp core.recipes

# %%
#| export
import ast
import math
import types
import typing
from dataclasses import MISSING, field, fields, is_dataclass, replace

from mammo_nb.core.errors import ProjectError

# %%
#| hide
from dataclasses import asdict, dataclass

# %%
#| export
class RecipeError(ProjectError):
    "A recipe, section or field that does not exist, or a value that its field cannot take."

# %% [markdown]
# ## Sections
# A field of a section carries its range. An impossible value is then an error before anything runs.

# %%
#| export
LARGEST_SIDE = 8192   # pixels; mammograms have up to 6000

def bounded(
    default,         # value when a recipe does not set the field
    low=None,        # smallest allowed value, included
    high=None,       # largest allowed value, included
    choices=None,    # the allowed values, for text
    multiple=None,   # the value must be a multiple of this
    pixels=False,    # whether it is the side of a picture in pixels, which is at most LARGEST_SIDE
):                   # a dataclass field
    "A field of a section with its range."
    limits = {"low": low, "high": LARGEST_SIDE if pixels else high, "choices": tuple(choices) if choices else None,
              "multiple": multiple, "pixels": pixels}
    return field(default=default, metadata={"limits": limits})

# %%
@dataclass(frozen=True)
class Loop:
    "Numbers of an optimiser, shared by several sections."
    epochs: int = bounded(4, low=1)
    lr: float = bounded(1e-3, low=0, high=10)

@dataclass(frozen=True)
class Train:
    "A section with another one inside."
    network: str = "resnet10t"
    pool: str = bounded("avg", choices=("avg", "max"))
    size: int = bounded(224, low=32, multiple=32, pixels=True)
    loop: Loop = Loop()
    before: "Train | None" = None

# %%
#| export
def _takes(kind, value) -> bool:
    "Whether a value has the annotated type; an int is accepted for a float, a bool is no int."
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_takes(k, value) for k in inner)
    if origin is tuple:
        element = inner[0] if inner else object
        return isinstance(value, tuple) and all(_takes(element, v) for v in value)
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, str, bool):
        return type(value) is kind
    return kind in (typing.Any, object) or isinstance(value, kind)

def _check_field(where: str, kind, limits: dict, value):
    "Raise `RecipeError` if the value does not fit the field."
    if not _takes(kind, value):
        raise RecipeError(f"{where} takes {getattr(kind, '__name__', kind)}, got {value!r}.")
    low, high, choices, multiple = (limits.get(name) for name in ("low", "high", "choices", "multiple"))
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where} must be a finite number, got {value!r}.")
    if choices and value not in choices:
        raise RecipeError(f"{where} takes one of {', '.join(map(str, choices))}, got {value!r}.")
    if low is not None and value < low:
        raise RecipeError(f"{where} must be at least {low}, got {value!r}.")
    if high is not None and value > high:
        memory = f" One square picture of this side takes {4 * value**2 / 1e9:.1f} GB." if limits.get("pixels") else ""
        raise RecipeError(f"{where} must be at most {high}, got {value!r}.{memory}")
    if multiple and value % multiple:
        raise RecipeError(f"{where} must be a multiple of {multiple}, got {value!r}.")

def check_section(
    section,     # a dataclass instance
    where: str,  # its name in messages, such as "train"
):               # the same section, ints in float fields turned into floats
    "Check types and ranges of a section and of the sections inside it; raises `RecipeError`."
    kinds = typing.get_type_hints(type(section))
    changes = {}
    for each in fields(section):
        value = getattr(section, each.name)
        name = f"{where}.{each.name}"
        _check_field(name, kinds[each.name], each.metadata.get("limits", {}), value)
        if kinds[each.name] is float:
            changes[each.name] = float(value)
        elif is_dataclass(value):
            changes[each.name] = check_section(value, name)
        elif isinstance(value, tuple) and any(map(is_dataclass, value)):
            changes[each.name] = tuple(check_section(v, name) for v in value)
    return replace(section, **changes)

# %%
assert check_section(Train(loop=Loop(lr=1)), "train").loop.lr == 1.0
for wrong in (Train(loop=Loop(epochs=0)), Train(pool="mean"), Train(network=5), Train(loop=Loop(lr=float("nan"))),
              Train(size=100_000), Train(size=100)):
    try:
        check_section(wrong, "train")
    except RecipeError as e:
        print(e)

# %% [markdown]
# ## Overrides
# `SET="train.loop.epochs=8"` changes a field for one run. The name before the first dot is the stage; the rest is the
# field, with a dot for each section inside. A change also reaches the trainings that a section holds in `before` or in
# a tuple, because they belong to the same experiment.

# %%
#| export
def parse_overrides(
    settings: list[str],  # texts such as "train.loop.epochs=8"
) -> dict:                # dotted field -> value; a value that is no Python literal stays text
    "Read the texts of `SET`; raises `RecipeError` for a text of another form."
    overrides = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            raise RecipeError(f"{text!r} is not of the form stage.field=value, such as folds.n_folds=5.")
        try:
            overrides[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a bare word, such as the name of a network
            overrides[name] = value
    return overrides

def _field_names(section, prefix: str = "") -> list[str]:
    "Fields that an override can name, those of inner sections with a dot."
    names = []
    for each in fields(section):
        value = getattr(section, each.name)
        inner = is_dataclass(value) and not isinstance(value, type(section))
        names += _field_names(value, f"{prefix}{each.name}.") if inner else [prefix + each.name]
    return names

def _replaced(section, name: str, value):
    "The section with one dotted field replaced, also in the sections of the same class inside it."
    first, _, rest = name.partition(".")
    changes = {first: _replaced(getattr(section, first), rest, value) if rest else value}
    for each in fields(section):
        held = getattr(section, each.name)
        if isinstance(held, type(section)):
            changes[each.name] = _replaced(held, name, value)
        elif isinstance(held, tuple) and held and isinstance(held[0], type(section)):
            changes[each.name] = tuple(_replaced(h, name, value) for h in held)
    return replace(section, **changes)

def override(
    section,          # a section of a recipe
    changes: dict,    # dotted field -> value
    where: str,       # name of the section in messages
):                    # the changed section
    "Replace fields of a section; raises `RecipeError` with the valid names or the allowed values."
    valid = _field_names(section)
    for name, value in changes.items():
        if name not in valid:
            raise RecipeError(f"{where} has no {name}. It has {', '.join(valid)}.")
        kind = typing.get_type_hints(type(section)).get(name)
        if kind is not None and kind not in (int, float, str, bool):
            raise RecipeError(f"{where}.{name} is set in a recipe, not for a run.")
        section = _replaced(section, name, value)
    return check_section(section, where)

# %%
changed = override(Train(before=Train()), parse_overrides(["loop.epochs=8", "loop.lr=1"]), "train")
assert changed.loop == Loop(8, 1.0) == changed.before.loop
for text in ("loop.epoch=8", "loop.epochs=eight", "pool.kind=max", "before.x=None"):
    try:
        override(Train(), parse_overrides([text]), "train")
    except RecipeError as e:
        print(e)

# %% [markdown]
# ## A recipe
# A recipe holds the sections in which it differs; the others keep their defaults. It also names its *mode*, which
# decides which stages run, and the stages of that mode that it skips: a recipe for real data skips the drawing.

# %%
#| export
class Recipe:
    "One experiment: a sentence about it, the sections that differ from their defaults, and its mode."
    def __init__(
        self,
        about: str,                     # one sentence, shown in tables
        *sections,                      # instances of section dataclasses, each class at most once
        mode: str = "full",             # key of the system's modes
        skips: tuple[str, ...] = (),    # stages of the mode that this recipe does not need
    ):
        kinds = [type(s) for s in sections]
        if len(set(kinds)) < len(kinds):
            raise RecipeError(f"The recipe {about!r} has two sections of one class.")
        self.about, self.mode, self.skips = about, mode, tuple(skips)
        self.sections = {type(s): s for s in sections}

    def section(
        self,
        kind: type,  # class of a section
    ):               # its instance in this recipe, or one with all defaults
        "A section of the recipe."
        return self.sections[kind] if kind in self.sections else kind()

# %%
recipe = Recipe("eight epochs", Train(loop=Loop(epochs=8)))
assert recipe.section(Train).loop.epochs == 8 and recipe.section(Loop) == Loop()

# %% [markdown]
# A run stores its sections as JSON. `from_dict` builds them again, with the same checks; a field that is unknown today
# is an error and not a silent default.

# %%
#| export
def _rebuilt(kind, value):
    "Convert a value from JSON to the annotated type."
    inner = [k for k in (kind, *typing.get_args(kind)) if is_dataclass(k)]
    if isinstance(value, dict) and inner:
        return from_dict(inner[0], value)
    if isinstance(value, list):
        return tuple(_rebuilt(inner[0] if inner else object, v) for v in value)
    return value

def from_dict(
    kind: type,     # class of a section
    stored: dict,   # from `dataclasses.asdict`, perhaps through JSON
):                  # an instance of `kind`
    "Build a section from its dict; raises `RecipeError` for unknown or missing fields and for wrong values."
    kinds = typing.get_type_hints(kind)
    if unknown := sorted(set(stored) - set(kinds)):
        raise RecipeError(f"{kind.__name__} has no {', '.join(unknown)}. It has {', '.join(kinds)}.")
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := sorted(set(required) - set(stored)):
        raise RecipeError(f"{kind.__name__} needs {', '.join(missing)}.")
    return check_section(kind(**{name: _rebuilt(kinds[name], value) for name, value in stored.items()}), kind.__name__)

# %%
assert from_dict(Train, asdict(changed)) == changed

# %% [markdown]
# ---
# [← Notebooks](14_notebooks.py) · [Systems →](16_systems.py)
