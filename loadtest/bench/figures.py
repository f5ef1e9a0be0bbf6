"""A figure: one line of the table, one object of bench.json. Not how it is measured."""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Figure:
    """A measured value with its target, if it has one, and whatever shows how far it can be trusted."""

    name: str
    value: float | str
    unit: str | None = None
    target: float | None = None
    met: bool | None = None
    details: dict[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The object in bench.json: the details stand beside the other fields."""
        fields = asdict(self)
        details = fields.pop("details")
        return {**fields, **details}


def at_least(target: float, name: str, value: float, unit: str | None, **details: object) -> Figure:
    """A figure that is good when it is high."""
    return Figure(name, value, unit, target, value >= target, details)


def at_most(target: float, name: str, value: float, unit: str | None, **details: object) -> Figure:
    """A figure that is good when it is low."""
    return Figure(name, value, unit, target, value <= target, details)
