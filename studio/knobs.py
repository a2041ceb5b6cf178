"""Fields a person can turn. Default, bounds, help and unit are written once, here on the field.

The form, `--help`, the docs tables and the spec's validation are all read from it.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen, validated record; unknown keys, infinities and NaN are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def knob(
    default: Any,
    help: str,
    *,
    title: str | None = None,
    unit: str = "",
    advanced: bool | str = False,
    step: float | None = None,
    several: bool = False,
    **bounds: Any,
) -> Any:
    """Declare a field with everything the form and the docs need.

    Args:
        default: The default; lists and dicts are copied.
        help: One sentence: meaning, and what a larger value trades.
        title: The label; the field's name in words when absent.
        unit: Shown behind the number.
        advanced: Shown only in the form's Advanced part; a text is its heading there.
        step: The slider's step.
        several: Text in which a comma stands between names that are picked together.
        bounds: `ge`, `gt`, `le`, `lt`, `max_length` as in pydantic.
    """
    extra: dict[str, Any] = {"unit": unit, "advanced": advanced, "step": step, "several": several}
    if isinstance(default, list | dict):
        return Field(
            default_factory=lambda: type(default)(default),
            title=title,
            description=help,
            json_schema_extra=extra,
            **bounds,
        )
    return Field(default, title=title, description=help, json_schema_extra=extra, **bounds)
