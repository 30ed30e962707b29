"""Alarms: figures of a run that say that it has failed, long before a loss is not finite."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from limbeck.component import Document
from limbeck.errors import Failed


class Alarm(Document):
    """Stops a run where a figure stays beyond a bound: samples that have become alike, a critic that does not learn, a role without gradient.

    While a figure is beyond its bound no checkpoint is made, so that the last one is from before.
    """

    metric: str
    """A name in metrics.jsonl: an objective (`dmd`; with several turns `1.denoising`), `gradient_norm`, `held_out.kl`, ..."""
    below: float | None = None
    """It must not stay below this."""
    above: float | None = None
    """It must not stay above this."""
    of: Literal["itself", "start"] = "itself"
    """start: the bound is a factor of the mean over the first `patience` figures of the stage."""
    after: int = Field(default=0, ge=0)
    """Not before this step: a critic needs time to learn."""
    patience: int = Field(default=10, gt=0)
    """Figures in a row that must be beyond the bound."""

    @model_validator(mode="after")
    def one_bound(self) -> "Alarm":
        if (self.below is None) == (self.above is None):
            raise ValueError("below, or above: one of them")
        return self


class Watch:
    """One alarm while its stage runs."""

    def __init__(self, alarm: Alarm):
        self.alarm = alarm
        self.first: list[float] = []
        """Figures that the bound is a factor of."""
        self.beyond = 0
        """Figures in a row, up to now, that are beyond the bound."""

    @property
    def bound(self) -> float | None:
        """What the figure must not pass; None while it is not known yet."""
        given = self.alarm.above if self.alarm.below is None else self.alarm.below
        assert given is not None
        if self.alarm.of == "itself":
            return given
        return given * sum(self.first) / len(self.first) if len(self.first) == self.alarm.patience else None

    def hear(self, step: int, records: Sequence[Mapping[str, Any]], where: str) -> None:
        """Takes up the figures of a step.

        Raises:
            Alarmed: when enough of them in a row were beyond the bound.
            Failed: `metric`, where the first step has no such figure.
        """
        alarm, values = self.alarm, [r["sum"] / r["count"] for r in records if r["name"] == self.alarm.metric and r["count"]]
        names = dict.fromkeys(str(record["name"]) for record in records)
        if step == 0 and alarm.metric not in names and not alarm.metric.startswith("held_out."):
            raise Failed("metric", f"{where}.alarm.metric", f"one of {', '.join(names)}", alarm.metric, "change the metric", code=5)
        for value in values:
            bound = self.bound
            if alarm.of == "start" and len(self.first) < alarm.patience:
                self.first.append(value)
            elif bound is not None and step >= alarm.after:
                self.beyond = self.beyond + 1 if (value < bound if alarm.below is not None else value > bound) else 0
            if self.beyond >= alarm.patience:
                raise Alarmed(self, step, value, where)

    def state(self) -> dict[str, Any]:
        return {"first": list(self.first), "beyond": self.beyond}

    def load(self, state: Mapping[str, Any]) -> None:
        self.first, self.beyond = list(state["first"]), int(state["beyond"])


class Alarmed(Exception):
    """A figure has stayed beyond its bound."""

    def __init__(self, watch: Watch, step: int, value: float, where: str):
        self.alarm, self.step, self.value, self.bound, self.where = watch.alarm, step, value, watch.bound, where
        super().__init__(f"step {step}: {watch.alarm.metric} is {value:.4g}")

    def failed(self, safe: str) -> Failed:
        """What the user reads; `safe` says where the state from before is."""
        side = "at most" if self.alarm.below is None else "at least"
        factor = f", {self.alarm.above if self.alarm.below is None else self.alarm.below:g} of its start" if self.alarm.of == "start" else ""
        return Failed(
            "alarm",
            f"{self.where}.alarm  {self.alarm.metric}",
            f"{side} {self.bound:.4g}{factor}",
            f"{self.value:.4g} at step {self.step}, beyond it for {self.alarm.patience} figures",
            f"{safe}; lower the learning rate, or change how often each role takes its turn",
            code=5,
        )
